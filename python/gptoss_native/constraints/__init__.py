"""Which tokens may come next, so that an answer cannot be malformed.

| file | its one idea |
|---|---|
| params.py | StructuredOutputsParams: what a user asks for |
| states.py | an automaton over tokens: each state says what may come next |
| harmony.py | the states of an assistant's turn: headers, reasoning, answer, calls |
| grammar.py | JSON schema, regex, choice, Lark to a matcher, by llguidance (extra `structured`) |
| constraints.py | from a request's options to its first state |
"""

from .constraints import Constraints
from .params import StructuredOutputsParams
from .states import Constraint

__all__ = ["Constraint", "Constraints", "StructuredOutputsParams"]
