import json

import torch
import transformers

from vtw_demo.machine import this_machine


def test_the_machine_names_what_runs_here():
    machine = this_machine()
    versions = dict(machine.versions)
    assert versions["torch"] == torch.__version__
    assert versions["transformers"] == transformers.__version__
    assert machine.threads == torch.get_num_threads()
    assert machine.processor
    assert torch.__version__ in str(machine)
    assert json.loads(json.dumps(machine.to_json()))["versions"] == versions
