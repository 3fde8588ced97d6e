"""What the tests with Ray share."""

import time

import psutil

SECONDS = 120


def until(is_so, seconds=SECONDS):
    deadline = time.monotonic() + seconds
    while not (found := is_so()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def replica_processes():
    """Process numbers of the replicas that this process has started."""
    children = psutil.Process().children(recursive=True)
    return {child.pid for child in children if child.status() != psutil.STATUS_ZOMBIE and is_replica(child)}


def is_replica(process):
    try:
        return process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ServeReplica")
    except psutil.Error:
        return False


def asked(engine, query, visitor="a", stop=None):
    return engine.compare(visitor, engine.vlm, query, query.prompt(engine.vlm), stop=stop)


def is_as_alone(comparison, alone):
    return (comparison.full.tokens, comparison.withdrawn.tokens, comparison.full.answer) == (
        alone.full.tokens,
        alone.withdrawn.tokens,
        alone.full.answer,
    )
