"""Which parameters a diffusers runtime takes.

Runtimes splat the instance into the pipeline, `pipeline(**instance)`: an explicit null is an error, and an unknown key
is an error on most pipelines but swallowed in silence by some. So nulls are never sent, and a record claims an applied
seed only where the profile declares one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sidecar.config import ModelSettings
from sidecar.domain import GenerationRequest

_PIPELINE_KEYWORDS = ("negative_prompt", "width", "height", "num_inference_steps", "guidance_scale")


@dataclass(frozen=True, slots=True)
class ParameterProfile:
    """The optional keys of a predict instance, named as in `GenerationRequest`."""

    optional_keys: tuple[str, ...]

    @property
    def takes_seed(self) -> bool:
        return "seed" in self.optional_keys


PROFILES: Mapping[str, ParameterProfile] = {
    "diffusers": ParameterProfile(_PIPELINE_KEYWORDS),
    "diffusers-seed": ParameterProfile((*_PIPELINE_KEYWORDS, "seed")),
}


def instance_for(request: GenerationRequest, model: ModelSettings, refused: Collection[str]) -> dict[str, Any]:
    """The predict instance: what was asked for and the runtime is known to take, nulls left out."""
    keys = PROFILES[model.profile].optional_keys
    asked = {key: value for key in keys if (value := getattr(request, key)) is not None}
    optional = {key: value for key, value in {**model.extra_parameters, **asked}.items() if key not in refused}
    return {"prompt": request.prompt, **optional}
