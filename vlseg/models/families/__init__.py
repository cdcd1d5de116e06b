"""What differs between families of vision-language models: one small adapter each."""

from vlseg.models.families.base import Family, family_of

__all__ = ["Family", "family_of"]
