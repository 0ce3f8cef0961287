"""A merge before it is done: everything opened, checked against everything else, and hashed."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, nullcontext
from typing import Any, Self

from torch import Tensor

from espnet_adaltm.errors import UserError
from espnet_adaltm.files import Pathlike
from espnet_adaltm.merging.arithmetic import METHODS, TensorMerge, tensor_merge
from espnet_adaltm.merging.groups import map_group
from espnet_adaltm.merging.preprocess import prepare
from espnet_adaltm.merging.recipe import DTYPES, Recipe
from espnet_adaltm.merging.sources import DeltaSource, open_expert, open_vector, vector_source
from espnet_adaltm.merging.sparsify import check_density, kth_magnitude
from espnet_adaltm.merging.stream import default_threads
from espnet_adaltm.merging.task_vector import TaskVector, depth
from espnet_adaltm.merging.weight_files import Identities
from espnet_adaltm.merging.weights import Source, open_weights

NO_BLOCK = "in no block"
ZERO = "coefficients are 0"
CONSTANT = "constant"
# Up to so many, PyTorch adds them one after another (`merging.formulas`), as pieces are.
_ADDED_IN_TURN = 4


class MergePlan:
    """A merge whose inputs are open and fit together; a context manager.

    Args:
        base: Encoder's folder, safetensors, shards or state dictionary.
        recipe: Its tasks must be those given.
        experts: Task to fine-tuned checkpoint; differences are taken on the way.
        vectors: Task to task vector, a file or in memory, instead of or beside experts.
        norm_first: True for pre-norm encoders.

    Attributes:
        recipe: With its tasks settled.
        table: Weights and scale by group.
        blocks: Where each float tensor is.
        floats: Names of the base's float tensors.
        groups: Those of them that are in a block, to their groups.
        base: The base's tensors.
        sources: Differences, in the order of the recipe's tasks, as they were given.
        prepared: What is merged of them: the same, until `prepare` has preprocessed them.
        moved: Names of tensors that something is added to.
        kept: Name to the reason why it stays the base's.

    Raises:
        UserError: Names, shapes, dtypes, weights or options that do not fit. Only headers and
            constants have been read by then; `check_hashes` reads more.
    """

    def __init__(
        self,
        base: Source,
        recipe: Recipe,
        *,
        experts: Mapping[str, Source] | None = None,
        vectors: Mapping[str, Pathlike | TaskVector] | None = None,
        norm_first: bool = True,
    ) -> None:
        experts, vectors = experts or {}, vectors or {}
        twice = sorted(experts.keys() & vectors.keys())
        if twice:
            raise UserError(f"task {twice[0]} has both an expert and a vector: give one of them")
        self.recipe = recipe.for_tasks([*experts, *vectors])
        self.dtype = DTYPES[recipe.dtype]
        self._source = base
        self.norm_first = norm_first
        self._thresholds: dict[str, float] | None = None
        self._merges: dict[str, TensorMerge] = {}
        with ExitStack() as stack:
            names = recipe.any_names
            self.base = stack.enter_context(open_weights(base, any_names=names))
            self._map(norm_first)
            self.sources: list[DeltaSource] = [
                stack.enter_context(
                    open_vector(self.base, vectors[task])
                    if task in vectors
                    else open_expert(self.base, experts[task], any_names=names)
                )
                for task in self.recipe.tasks
            ]
            self.prepared = self.sources
            self._try_options()
            self._stack = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def _map(self, norm_first: bool) -> None:
        specs = self.base.specs
        self.floats = [name for name, spec in specs.items() if spec.dtype.is_floating_point]
        self.blocks = blocks = self.recipe.block_map(self.floats, norm_first=norm_first)
        self.table = self.recipe.table(blocks)
        self._column = {group: at for at, group in enumerate(self.table.groups)}
        level = self.recipe.granularity
        self.groups = {name: map_group(blocks, name, level) for name in blocks}
        self.kept: dict[str, str] = {}
        for name in specs:
            if not specs[name].dtype.is_floating_point:
                self.kept[name] = CONSTANT
            elif name not in self.groups:
                self.kept[name] = NO_BLOCK
            elif not self.scale(name) or not any(self.weights(name)):
                self.kept[name] = ZERO
        self.moved = {name for name in specs if name not in self.kept}

    def _try_options(self) -> None:
        """Let the method itself look at options, weights and number of tasks."""
        for group in {self.groups[name] for name in self.moved}:
            self._bind(group, dict.fromkeys(self.recipe.tasks, 0.0))
        if self.recipe.options.get("scope") == "model":
            check_density(self.recipe.options["density"])

    def weights(self, name: str) -> list[float]:
        """Lambda of every task for a tensor in a block."""
        at = self._column[self.groups[name]]
        return [row[at] for row in self.table.weights]

    def scale(self, name: str) -> float:
        """What the merged difference of a tensor in a block is multiplied by."""
        return self.table.scale[self._column[self.groups[name]]]

    @property
    def num_layers(self) -> int:
        """Number of transformer layers that the base's names tell of."""
        return depth(self.base.specs)

    @property
    def elementwise(self) -> bool:
        """Whether the merge is a sum that can be taken in pieces."""
        few = len(self.sources) <= _ADDED_IN_TURN
        return self.recipe.method == "task_arithmetic" and few

    def hashes(self, begun: Identities | None = None) -> dict[str, str]:
        """Take the SHA-256 of the base (``base``) and of experts, and compare.

        Args:
            begun: Hashes that are being taken already.

        Returns:
            ``base`` and each task, the expert's hash; empty where there is no file.

        Raises:
            UserError: A vector, an expert or the recipe was made from another base.
        """
        sources = [self._source] + [s.expert if s.expert is not None else {} for s in self.sources]
        files = [source for source in sources if not isinstance(source, Mapping)]
        with nullcontext(begun) if begun else Identities(files) as identities:
            found = [identities(source) for source in sources]
        base = found[0]
        claims = [(self.recipe.made_from.get("base_sha256"), f"the recipe {self.recipe.name}")]
        claims += [(source.of_base, source.where) for source in self.sources]
        for theirs, where in claims:
            if theirs and base and theirs != base:
                raise UserError(
                    f"{where} was made from the base {theirs[:12]}, but {self.base.source} is "
                    f"{base[:12]}: give its own base, or make it again from this one"
                )
        experts = zip(self.recipe.tasks, found[1:], self.sources, strict=True)
        return {"base": base, **{task: sha or s.expert_sha256 for task, sha, s in experts}}

    def prepare(self) -> None:
        """Do what needs whole vectors: preprocess them (in memory), find a model's thresholds."""
        options = self.recipe.seeded_preprocess
        if (kind := options.pop("method")) != "none":
            vectors = {t: s.vector for t, s in zip(self.recipe.tasks, self.sources)}
            made = prepare(vectors, kind, **options)
            self.prepared = [
                vector_source(self.base, made[task], f"the {kind} vector of {task}")
                for task in self.recipe.tasks
            ]
        if self.recipe.options.get("scope") == "model":
            with ThreadPoolExecutor(default_threads()) as pool:
                found = pool.map(self._threshold, self.prepared)
                self._thresholds = dict(zip(self.recipe.tasks, found))

    def _threshold(self, source: DeltaSource) -> float:
        """`sparsify.trim_threshold`, without reading everything once more for its size."""
        density = self.recipe.options["density"]
        if density >= 1:
            return 0.0
        k = int(density * sum(spec.size for spec in source.specs.values()))
        return kth_magnitude(source.vector.tensors.values(), k) if k else float("inf")

    def merged(self, name: str, before: Tensor) -> Tensor:
        """Merge one whole tensor; `prepare` comes first.

        Args:
            name: One of `moved`.
            before: The base's, any float dtype.

        Returns:
            float32.
        """
        group = self.groups[name]
        if group not in self._merges:
            self._merges[group] = self._bind(group, self._thresholds)
        delta = self._merges[group](name, [source.whole(name) for source in self.prepared])
        scale = self.scale(name)
        return before.float() + (delta if scale == 1 else delta * scale)

    def _bind(self, group: str, thresholds: Mapping[str, float] | None) -> TensorMerge:
        recipe = self.recipe
        weights = [row[self._column[group]] for row in self.table.weights]
        seed = {"seed": recipe.seed} if METHODS[recipe.method].random else {}
        return tensor_merge(
            recipe.method, recipe.tasks, weights, thresholds=thresholds, **seed, **recipe.options
        )
