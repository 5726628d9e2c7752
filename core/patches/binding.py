"""How a method hangs on a model: the wrappers around ComfyUI's sampling, written once for all methods.

A model carries only what its nodes asked for, in `transformer_options`. For the time of a sampling run a `Run` takes
its place, and for the time of one evaluation an `Evaluation` lies beside it: nothing outlives the call it serves, and
nothing is shared between calls that ComfyUI may run side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from comfy.model_management import dtype_size
from comfy.patcher_extension import CallbacksMP, WrapperExecutor, WrappersMP
from torch import Tensor

from .attention import Options
from .blocks import Block
from .memory import Reserved, shape_with
from .passes import Asked, evaluation_key, is_reference_pass, rearranger, replaced, uncompiled, with_state

if TYPE_CHECKING:
    from comfy.model_base import BaseModel
    from comfy.model_patcher import ModelPatcher
    from comfy.samplers import CFGGuider


class Evaluation:
    """What serves one evaluation of the model, which may take several forward passes. Methods derive theirs from it.

    Attributes:
        is_reading: whether it serves the reading of the method's own reference.
        passes: how many forward passes it was asked for.
        pictures: B, how many each conditioning is evaluated for.
        blocks: those whose attention the method is to change in it.
        acted: those whose attention was changed. The method adds to it.
    """

    is_reading = False
    passes = 0
    pictures = 0
    blocks: frozenset[Block] = frozenset()

    def __init__(self) -> None:
        self.acted: set[Block] = set()

    def forward(self, executor: Callable[..., Tensor], x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One forward pass with its attentions routed.

        Args:
            executor: goes on with the model.
            x: (G * B, C, ...), what the model is given.
            args: what else it is given; the last is transformer_options.
        """
        raise NotImplementedError


class Run:
    """One sampling run of a method: what is computed once for all steps. Methods derive theirs from it."""

    @property
    def latents(self) -> Sequence[Tensor]:
        """(R, C, ...) of all that passes through the model by itself before the pictures do."""
        return ()

    @property
    def held(self) -> int:
        """How many numbers of what a reference gave lie on the device at a time."""
        return 0

    @property
    def prompts(self) -> list[dict[str, Any]]:
        """Conditionings of the method's own; what they carry (a ControlNet, say) is loaded with the model."""
        return []

    def noise(self, noise: Tensor) -> Tensor:
        """The noise that sampling starts from, in place of the sampler's, (B, C, ...)."""
        return noise

    def seen(self, asked: Asked) -> Tensor:
        """What the model is to see in an evaluation in place of the sampler's latents."""
        return asked.x

    def evaluation(self, asked: Asked) -> Evaluation | None:
        """What serves an evaluation; None leaves it as it is."""
        raise NotImplementedError

    def served(self, asked: Asked, evaluation: Any) -> None:
        """Called after an evaluation."""

    def finish(self) -> None:
        """Called when the run came to its end; raises where its result cannot be right."""

    def close(self) -> None:
        """Called last, however the run ended: frees what is held outside of it."""


@dataclass(frozen=True, eq=False)
class Binding:
    """Binds one method to models.

    Attributes:
        key: of the method in `transformer_options` and among the wrappers; begins with "refattention.".
        name: of the method or its node, for messages.
        open: makes a run of what the model carries, the guider, the shape of the latents (of a video
            without its sound) and the noise levels.
        place: the wrapper in which attentions are routed. What is routed in DIFFUSION_MODEL lies inside of all that is
            routed in APPLY_MODEL, whatever the order of the nodes.
        reads_references: whether the method also acts while another one reads its reference.
    """

    key: str
    name: str
    open: Callable[[Any, CFGGuider, Sequence[int], Tensor], Run]
    place: str = WrappersMP.APPLY_MODEL
    reads_references: bool = False

    def attached(self, model: ModelPatcher, asked: Any) -> ModelPatcher:
        """A clone of the model that carries what a node asked for, in place of what it carried for this method."""
        patched = model.clone()
        patched.model_options["transformer_options"][self.key] = asked
        for place, wrapper in self._wrappers.items():
            patched.remove_wrappers_with_key(place, self.key)
            patched.add_wrapper_with_key(place, self.key, wrapper)
        patched.remove_callbacks_with_key(CallbacksMP.ON_PRE_RUN, self.key)
        patched.add_callback_with_key(CallbacksMP.ON_PRE_RUN, self.key, self._pre_run)
        patched.set_attachments(self._running, [])
        return patched

    def carried(self, model: ModelPatcher) -> Any:
        """What the model carries for this method; None if it carries nothing."""
        return model.model_options["transformer_options"].get(self.key)

    def run_of(self, options: Options) -> Any:
        """The run whose `transformer_options` these are."""
        return options[self.key].run

    @property
    def _running(self) -> str:
        """Among a model's attachments, which its clones share: the runs that are under way with what it carries."""
        return f"{self.key}.running"

    @property
    def _wrappers(self) -> dict[str, Callable[..., Any]]:
        return {
            WrappersMP.OUTER_SAMPLE: self._outer_sample,
            WrappersMP.PREPARE_SAMPLING: self._prepare_sampling,
            WrappersMP.CALC_COND_BATCH: self._calc_cond_batch,
            self.place: self._forward,
        }

    def _outer_sample(
        self, executor: WrapperExecutor, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any,
        **kwargs: Any,
    ) -> Tensor:  # fmt: skip
        """Opens a run for one call of the sampler and drops it, with all its tensors, whatever happens."""
        options = executor.class_obj.model_options["transformer_options"]
        asked = options[self.key]
        shapes = kwargs.get("latent_shapes") or []  # several where a video is sampled together with its sound
        shape: Sequence[int] = shapes[0] if len(shapes) > 1 else noise.shape
        model = executor.class_obj.model_patcher
        opened = _Opened(self.open(asked, executor.class_obj, shape, sigmas), model)
        options[self.key] = opened
        running = model.get_attachment(self._running)
        running.append(opened)
        try:
            out = executor(opened.run.noise(noise), latent, sampler, sigmas, *args, **kwargs)
            opened.require_effect(self.name)
            opened.run.finish()
            return out
        finally:
            options[self.key] = asked
            running.remove(opened)
            opened.run.close()

    def _prepare_sampling(
        self, executor: WrapperExecutor, model: ModelPatcher, noise_shape: Any, conds: dict[str, Any],
        model_options: dict[str, Any], **kwargs: Any,
    ) -> tuple[Any, ...]:  # fmt: skip
        """Reserves memory for the method, and loads what its prompts need."""
        run = self.run_of(model_options["transformer_options"])
        shape = shape_with(noise_shape, run.latents)
        reserved = {"control": Reserved(run.held * dtype_size(model.model.get_dtype_inference()))}
        more = {**conds, self.key: [*run.prompts, reserved]}
        real_model, _, models = executor(model, shape, more, model_options=model_options, **kwargs)
        return real_model, conds, models

    def _calc_cond_batch(
        self, executor: WrapperExecutor, model: BaseModel, conds: list[Any], x: Tensor, timestep: Tensor,
        model_options: dict[str, Any],
    ) -> list[Tensor]:  # fmt: skip
        """Puts what serves this evaluation into its options; before that, the method may read its reference."""
        options = model_options["transformer_options"]
        if is_reference_pass(options) and not self.reads_references:
            return executor(model, conds, x, timestep, model_options)
        opened = options.get(self.key)
        if not isinstance(opened, _Opened):
            raise self._outside()
        opened.is_asked = True
        self._require_alike(model, opened.model)
        asked = Asked(executor, model, conds, x, timestep[:1], model_options)
        evaluation, x = opened.run.evaluation(asked), opened.run.seen(asked)
        if evaluation is None:
            if evaluation_key(self.key) in options:  # of the picture, around this pass of references
                model_options = with_state(model_options, {evaluation_key(self.key): None})
            return executor(model, conds, x, timestep, model_options)
        evaluation.pictures = len(x)
        state = {evaluation_key(self.key): evaluation}
        out = executor(model, conds, x, timestep, with_state(uncompiled(model_options), state))
        opened.note(evaluation, self.name, model_options)
        opened.run.served(asked, evaluation)
        return out

    def _require_alike(self, model: BaseModel, own: ModelPatcher) -> None:
        """Checks that the method can act on a model which a guider evaluates beside its own, if it is another one.

        Raises:
            RuntimeError: it is built in another way, or lacks the further models of the method.
        """
        if model is own.model:
            return
        if own.get_additional_models_with_key(self.key) or _built(model) != _built(own.model):
            raise RuntimeError(
                f"{self.name} cannot act on the further model of this guider (model_negative), which is built in "
                "another way or lacks what the method brings along. Remove that model from the guider."
            )

    def _pre_run(self, model: ModelPatcher) -> None:
        """Checks that a model which is about to be evaluated carries what a run was opened for.

        Raises:
            RuntimeError: a guider evaluates it beside its own, or there is none.
        """
        if not model.get_attachment(self._running):
            raise self._outside()

    def _outside(self) -> RuntimeError:
        return RuntimeError(
            f"{self.name} works only on the own model of ComfyUI's guider: not on one that is evaluated beside it "
            "(model_negative), nor in a sampler without it. Put the node on the guider's model, or use KSampler."
        )

    def _forward(self, executor: WrapperExecutor, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """One forward pass of the model, APPLY_MODEL or DIFFUSION_MODEL: both take transformer_options last."""
        evaluation, opened = (args[-1].get(key) for key in (evaluation_key(self.key), self.key))
        if evaluation is None or (is_reference_pass(args[-1]) and not (evaluation.is_reading or self.reads_references)):
            if isinstance(opened, _Opened) and not is_reference_pass(args[-1]):
                opened.require_asked(self.name)
            return executor(x, *args, **kwargs)
        self._require_rows(len(x), evaluation.pictures * len(args[-1]["cond_or_uncond"]))
        evaluation.passes += 1
        return evaluation.forward(executor, x, *args, **kwargs)

    def _require_rows(self, there: int, asked: int) -> None:
        """Checks that a forward pass is of as many pictures as ComfyUI asked for, prompt after prompt.

        Raises:
            RuntimeError: another node has put them together in its own way.
        """
        if there > asked:
            raise RuntimeError(
                f"{self.name}: another node of this model, tiled sampling for one, passes {there} pictures at once "
                f"where ComfyUI asks for {asked}, and nothing tells which of them belongs to which prompt. Set its "
                "tile_batch_size to 1, or remove it."
            )
        if there < asked:
            raise RuntimeError(
                f"{self.name}: another node of this model passes only {there} of {asked} pictures at a time, and "
                "nothing tells which. Put it before the node of this method, or remove it."
            )


def _built(model: BaseModel) -> Any:
    """How a model is built, but for the precision of its weights."""
    config = getattr(getattr(model, "model_config", None), "unet_config", {})
    return type(model), {key: value for key, value in config.items() if key != "dtype"}


class _Opened:
    """A run, with the counts that show whether it had any effect.

    Args:
        run: the run.
        model: that the guider samples with.

    Attributes:
        is_asked: whether one of ComfyUI's evaluations came by.
    """

    def __init__(self, run: Run, model: ModelPatcher) -> None:
        self.run = run
        self.model = model
        self.is_asked = False
        self._acted: set[Block] = set()
        self._evaluations = 0
        self._passes = 0
        self._rearranger = ""

    def note(self, served: Evaluation, name: str, model_options: dict[str, Any]) -> None:
        """Counts an evaluation that the method was to act in.

        Later ones may lack attentions for a good reason (perturbed guidance, a cached step), the first may not.
        """
        if is_reference_pass(model_options["transformer_options"]):  # which ends early
            return
        self._evaluations += 1
        self._acted |= served.acted
        self._passes += served.passes
        self._rearranger = rearranger(model_options)
        if self._evaluations > 1:
            return
        if served.passes or self._rearranger:
            self.require_effect(name)
        if served.passes and (missing := served.blocks - self._acted - replaced(model_options)):
            raise RuntimeError(
                f"{name} acts only in {len(served.blocks) - len(missing)} of {len(served.blocks)} blocks, because "
                f"another node of this model ({self._rearranger or 'a cache of blocks?'}) runs its blocks in its own "
                "way. Remove that node."
            )

    def require_asked(self, name: str) -> None:
        """Raises:
        RuntimeError: the pictures pass through the model before any evaluation of ComfyUI's.
        """
        if not self.is_asked:
            raise RuntimeError(
                f"{name} has no effect: another node (a guider, a sampler, regional prompts?) passes the pictures "
                "through this model by itself, not by ComfyUI's own evaluation. Remove that node."
            )

    def require_effect(self, name: str) -> None:
        """Raises:
        RuntimeError: there were evaluations to act in, but no attention was changed.
        """
        if self._acted or not self._evaluations:
            return
        if self._passes:
            raise RuntimeError(
                f"{name} had no effect: another patch of this model replaces the attention of all chosen blocks, or "
                "skips every step in which it was to act. Remove that patch, or choose other blocks or steps."
            )
        raise RuntimeError(
            f"{name} had no effect: another node ({self._rearranger or 'a cache of steps?'}) runs the layers of this "
            "model by itself or skips them, and asks no patch of its attention. Remove that node."
        )
