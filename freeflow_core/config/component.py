"""The configuration of one component: its name plus its own validated options."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, SerializeAsAny, model_serializer, model_validator


class Section(BaseModel):
    """Base of every configuration model: frozen, unknown keys refused, defaults validated."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ComponentConfig(Section):
    """Base class of a plugin's options. Give every field a description, a range and a default."""


class ComponentChoice(BaseModel):
    """A component by name with its options, written ``name`` or ``{name: ..., option: ...}``.

    The loader replaces ``options`` by an instance of the component's own :class:`ComponentConfig`.
    """

    model_config = ConfigDict(frozen=True)

    name: str
    options: SerializeAsAny[ComponentConfig] | dict[str, Any] = Field(default_factory=dict)

    @model_validator(mode="before")
    @classmethod
    def _flatten(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        if isinstance(value, dict) and "name" in value and set(value) != {"name", "options"}:
            return {"name": value["name"], "options": {k: v for k, v in value.items() if k != "name"}}
        return value

    @model_serializer
    def _unflatten(self) -> dict[str, Any]:
        options = self.options if isinstance(self.options, dict) else self.options.model_dump(mode="json")
        return {"name": self.name, **options}
