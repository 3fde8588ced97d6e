"""The entry point by which lmms-eval, the field's harness, finds `vtw` among its models."""

from lmms_eval.models.registry_v2 import ModelManifest


def manifest() -> ModelManifest:
    """Of `vtw_demo.evaluation.lmms_eval_model.VisualTokensWithdrawal`, as `--model vtw`."""
    return ModelManifest("vtw", simple_class_path="vtw_demo.evaluation.lmms_eval_model.VisualTokensWithdrawal")
