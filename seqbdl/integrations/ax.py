"""Surrogates inside Ax: importing this module teaches Ax's modular BoTorch generator to build, fit and store them.

Afterwards a surrogate class stands in ``ModelConfig(botorch_model_class=...)`` as it is; :func:`generation_strategy` builds
the usual whole. Ax calls this part of itself unstable: it is tested with the version that ``constraints.txt`` names.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from seqbdl.errors import InvalidOptionError, UnknownNameError
from seqbdl.surrogates import Surrogate, list_surrogates, surrogate_class
from seqbdl.surrogates.registry import surrogate_options

try:
    from ax.adapter.registry import Generators
    from ax.core.search_space import SearchSpaceDigest
    from ax.core.trial_status import TrialStatus
    from ax.generation_strategy.generation_node import GenerationNode
    from ax.generation_strategy.generation_strategy import GenerationStrategy
    from ax.generation_strategy.generator_spec import GeneratorSpec
    from ax.generation_strategy.transition_criterion import MinTrials
    from ax.generators.torch.botorch_modular.surrogate import SurrogateSpec, submodel_input_constructor
    from ax.generators.torch.botorch_modular.utils import ModelConfig, fit_botorch_model
    from ax.storage.botorch_modular_registry import register_acquisition_function, register_model
except ImportError as error:
    raise ImportError("seqbdl.integrations.ax needs Ax: pip install 'seqbdl[ax]'") from error


@submodel_input_constructor.register(Surrogate)
def _surrogate_inputs(
    botorch_model_class: type[Surrogate],
    model_config: ModelConfig,
    dataset: Any,
    search_space_digest: SearchSpaceDigest,
    surrogate: Any,
) -> dict[str, Any]:
    """Constructor arguments: the data, the bounds of the search space, and the options of the configuration."""
    given = {
        "covar_module_class": model_config.covar_module_class,
        "likelihood_class": model_config.likelihood_class,
        "outcome_transform_classes": model_config.outcome_transform_classes,
        "input_transform_options": model_config.input_transform_options,
    }
    for name, value in given.items():
        if value:
            raise InvalidOptionError(
                f"{name} is not for {botorch_model_class.__name__}: surrogates scale inputs and outcomes themselves; "
                "leave it out and put the surrogate's own options into model_options"
            )
    if search_space_digest.task_features or search_space_digest.fidelity_features:
        raise InvalidOptionError(f"{botorch_model_class.__name__} has no task or fidelity parameters; remove them")
    options = {"bounds": _bounds(search_space_digest), **model_config.model_options}
    return botorch_model_class.construct_inputs(dataset, **options)


def _bounds(digest: SearchSpaceDigest) -> Tensor:
    """``2 x d``; a parameter with a single value gets room above it."""
    bounds = torch.tensor(digest.bounds, dtype=torch.float64).T
    return torch.stack([bounds[0], torch.where(bounds[1] > bounds[0], bounds[1], bounds[0] + 1.0)])


@fit_botorch_model.register(Surrogate)
def _fit_surrogate(model: Surrogate, mll_class: Any = None, mll_options: dict[str, Any] | None = None) -> None:
    """Condition on the data that the constructor was given; there is no marginal likelihood to be chosen."""
    model.fit_training_data()


def generation_strategy(
    name: str,
    *,
    num_initial: int = 5,
    acquisition: type[Any] | None = None,
    seed: int = 0,
    **options: Any,
) -> GenerationStrategy:
    """Sobol points, then Bayesian optimization with a surrogate, for ``Client.set_generation_strategy``.

    Cross-validation by Ax refits the surrogate on every fold, without a look at the posterior of all data.

    Args:
        name: One of :func:`seqbdl.list_surrogates`.
        num_initial: Sobol trials before the surrogate takes over; trials attached by hand count.
        acquisition: A BoTorch acquisition class; Ax's choice by default (qLogNEI, qLogNEHVI).
        seed: Of the Sobol points and of the surrogate.
        options: The surrogate's own. Plain values (numbers, strings, lists) can be stored by Ax's ``save_to_json_file``.

    Raises:
        UnknownNameError: No surrogate has that name, or the surrogate has no such option.
        InvalidOptionError: ``num_initial`` is not positive.
    """
    model = surrogate_class(name)
    known = [option for option in surrogate_options(model) if option not in ("input_dim", "output_dim")]
    for option in options:
        if option not in known:
            raise UnknownNameError(f"option of {name!r}", option, known)
    if num_initial < 1:
        raise InvalidOptionError(f"num_initial={num_initial} must be at least 1")
    register_model(model)
    configuration = ModelConfig(
        botorch_model_class=model, model_options={"seed": seed, **options}, input_transform_classes=None, name=name
    )
    settings: dict[str, Any] = {
        "surrogate_spec": SurrogateSpec(model_configs=[configuration]),
        "refit_on_cv": True,
        "warm_start_refit": False,
    }
    if acquisition is not None:
        register_acquisition_function(acquisition)
        settings["botorch_acqf_class"] = acquisition
    initial = GenerationNode(
        name="Sobol",
        generator_specs=[GeneratorSpec(Generators.SOBOL, generator_kwargs={"seed": seed})],
        transition_criteria=[
            MinTrials(
                threshold=num_initial,
                transition_to=name,
                use_all_trials_in_exp=True,
                not_in_statuses=[TrialStatus.FAILED, TrialStatus.ABANDONED],
            ),
            MinTrials(
                threshold=max(1, num_initial // 2),
                transition_to=name,
                use_all_trials_in_exp=True,
                only_in_statuses=[TrialStatus.COMPLETED],
                count_only_trials_with_data=True,
            ),
        ],
        should_deduplicate=True,
    )
    optimize = GenerationNode(
        name=name,
        generator_specs=[GeneratorSpec(Generators.BOTORCH_MODULAR, generator_kwargs=settings)],
        should_deduplicate=True,
    )
    return GenerationStrategy(name=f"seqbdl {name}", nodes=[initial, optimize])


for _name in list_surrogates():
    register_model(surrogate_class(_name))
