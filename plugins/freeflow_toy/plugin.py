"""What this plugin offers."""

from freeflow_core.plugin import Component, hookimpl

freeflow_api = "1"


@hookimpl
def freeflow_teachers() -> list[Component]:
    """The exact Gaussian-mixture velocity."""
    return [Component("gaussian-mixture", ".gaussian_mixture:GaussianMixtureTeacher", ".config:GaussianMixtureConfig")]


@hookimpl
def freeflow_students() -> list[Component]:
    """Residual MLPs for vector states."""
    return [
        Component("mlp", ".mlp:MLPStudent", ".config:MLPStudentConfig"),
        Component("mlp-policy", ".mlp:MLPPolicyStudent", ".config:MLPPolicyStudentConfig"),
    ]


@hookimpl
def freeflow_sources() -> list[Component]:
    """Exact samples of the mixture."""
    return [Component("gaussian-mixture", ".gaussian_mixture:MixtureSource", ".config:MixtureSourceConfig")]


@hookimpl
def freeflow_codecs() -> list[Component]:
    """States as they are."""
    return [Component("states", ".gaussian_mixture:StatesCodec", ".config:StatesConfig")]
