"""Metadata that is the same in every checkpoint of a run."""

import dataclasses
import re
from typing import Any, Self

from shakegpt_jax.config import Config
from shakegpt_jax.errors import UserError

_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class RunMetadata:
    """Config, vocabulary and training text of a run."""

    config: Config
    vocabulary: str  # characters of the tokenizer, in order of their ids
    text_sha256: str  # of the training text in UTF-8; empty: unknown

    def to_json(self) -> dict[str, Any]:
        """Return the metadata as a JSON object."""
        return {
            "format_version": _FORMAT_VERSION,
            "config": self.config.to_dict(),
            "vocabulary": self.vocabulary,
            "text_sha256": self.text_sha256,
        }

    @classmethod
    def from_json(cls, metadata: Any) -> Self:
        """Validate and read the result of `to_json`.

        Raises:
            UserError: if the format version is unknown or a value is invalid.
        """
        version = metadata.get("format_version") if isinstance(metadata, dict) else None
        if type(version) is int and version > _FORMAT_VERSION:
            raise UserError(
                f"it has format version {version}, and this version reads up to "
                f"{_FORMAT_VERSION}; upgrade shakegpt_jax"
            )
        if type(version) is not int or version != _FORMAT_VERSION:
            raise UserError(f"its format_version is {version!r}, not {_FORMAT_VERSION}")
        config = Config.from_dict(metadata.get("config"))
        vocabulary, digest = metadata.get("vocabulary"), metadata.get("text_sha256")
        if not vocabulary or not isinstance(vocabulary, str):
            raise UserError("its vocabulary is not a text, or empty")
        if "".join(sorted(set(vocabulary))) != vocabulary:
            raise UserError("its vocabulary is not sorted, or has repetitions")
        if not isinstance(digest, str) or not re.fullmatch("([0-9a-f]{64})?", digest):
            raise UserError("its text_sha256 is not a SHA-256")
        return cls(config, vocabulary, digest)
