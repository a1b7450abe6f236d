"""What two runs must have in common for the second to continue the first."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping

from .._version import __version__
from ..calibration import Calibration
from ..config import RerankerSettings
from ..models import judgement_facts, model_hash, prompt_facts, resolve_checkpoint

#: Fields that are stored only if they differ from this value, which ordinary jobs have. Jobs of earlier versions do not
#: have the fields.
OPTIONAL = {
    "adapter": "", "scoring": "yes - no", "calibration": "", "long_documents": "truncate", "judged_fields": "",
}  # fmt: skip


def settings_fingerprint(settings: RerankerSettings, calibration: Calibration | None) -> dict[str, str]:
    """The part of the fingerprint that is known before a model is loaded: field -> value.

    Args:
        settings: the settings of the job.
        calibration: the content of the file that the settings name; None if they name none.

    Raises:
        InvalidInputError: the calibration was fitted with another model or prompt.
    """
    checkpoint = resolve_checkpoint(
        settings.model, adapter=settings.adapter, scoring=settings.scoring, template=settings.template
    )
    spec = checkpoint.spec
    others = dict(OPTIONAL) | {"scoring": str(spec.scoring)}
    if checkpoint.adapter is not None:
        others["adapter"] = model_hash(checkpoint.adapter, is_adapter=True)
    if calibration is not None:
        facts = judgement_facts(settings, checkpoint.folder, spec, checkpoint.adapter)
        calibration.check_judgement(facts, str(settings.calibration))
        others["calibration"] = f"{calibration.method}, {calibration.slope!r} * margin + {calibration.intercept!r}"
    if (pieces := settings.pieces) is not None:
        others["long_documents"] = f"{pieces.limit} pieces of {pieces.tokens} tokens, overlap {pieces.overlap}"
    return others | {
        "model": model_hash(checkpoint.folder),
        "model_name": settings.model,
        **prompt_facts(spec, settings.template, settings.instruction),
        "max_length": str(settings.max_length),
        "engine_options": json.dumps(dict(_without_secrets(settings.engine_options)), sort_keys=True),
        "version": __version__,
    }


def _without_secrets(options: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    """The options without secrets, because others may read the file; a server's key does not affect the scores."""
    for name, value in options.items():
        if not re.search("key|token$|secret|password|header", name):
            yield name, value
