import json
import subprocess

import torch
import transformers

from vtw_demo.comparison.machine import this_machine


def test_the_machine_names_what_runs_here():
    machine = this_machine()
    versions = dict(machine.versions)
    assert versions["torch"] == torch.__version__
    assert versions["transformers"] == transformers.__version__
    assert machine.threads == torch.get_num_threads()
    assert machine.processor
    assert torch.__version__ in str(machine)
    assert json.loads(json.dumps(machine.to_json()))["versions"] == versions


def test_the_commit_is_the_checkouts():
    asked = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    commit = this_machine().commit
    if asked.returncode:
        assert commit is None
    else:
        assert commit is not None
        assert asked.stdout.startswith(commit.removesuffix("+"))
        assert f"commit {commit}" in str(this_machine())
