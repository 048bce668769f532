"""The state table, held against PS3.8 Table 9-10 line by line."""

from __future__ import annotations

import pytest
from pynetdicom.fsm import ACTIONS, TRANSITION_TABLE

from drimbox.dicom.states import NEXT, TRANSITIONS, Happening, State

#: PS3.8 Table 9-10: one line an event, one column a state; blank where nothing can happen.
TABLE = """
 1 | AE-1 |      |      |      |      |      |      |      |      |       |      |       |
 2 |      |      |      | AE-2 |      |      |      |      |      |       |      |       |
 3 |      | AA-1 | AA-8 |      | AE-3 | AA-8 | AA-8 | AA-8 | AA-8 | AA-8  | AA-8 | AA-8  | AA-6
 4 |      | AA-1 | AA-8 |      | AE-4 | AA-8 | AA-8 | AA-8 | AA-8 | AA-8  | AA-8 | AA-8  | AA-6
 5 | AE-5 |      |      |      |      |      |      |      |      |       |      |       |
 6 |      | AE-6 | AA-8 |      | AA-8 | AA-8 | AA-8 | AA-8 | AA-8 | AA-8  | AA-8 | AA-8  | AA-7
 7 |      |      | AE-7 |      |      |      |      |      |      |       |      |       |
 8 |      |      | AE-8 |      |      |      |      |      |      |       |      |       |
 9 |      |      |      |      |      | DT-1 |      | AR-7 |      |       |      |       |
10 |      | AA-1 | AA-8 |      | AA-8 | DT-2 | AR-6 | AA-8 | AA-8 | AA-8  | AA-8 | AA-8  | AA-6
11 |      |      |      |      |      | AR-1 |      |      |      |       |      |       |
12 |      | AA-1 | AA-8 |      | AA-8 | AR-2 | AR-8 | AA-8 | AA-8 | AA-8  | AA-8 | AA-8  | AA-6
13 |      | AA-1 | AA-8 |      | AA-8 | AA-8 | AR-3 | AA-8 | AA-8 | AR-10 | AR-3 | AA-8  | AA-6
14 |      |      |      |      |      |      |      | AR-4 | AR-9 |       |      | AR-4  |
15 |      |      | AA-1 | AA-2 | AA-1 | AA-1 | AA-1 | AA-1 | AA-1 | AA-1  | AA-1 | AA-1  |
16 |      | AA-2 | AA-3 |      | AA-3 | AA-3 | AA-3 | AA-3 | AA-3 | AA-3  | AA-3 | AA-3  | AA-2
17 |      | AA-5 | AA-4 | AA-4 | AA-4 | AA-4 | AA-4 | AA-4 | AA-4 | AA-4  | AA-4 | AA-4  | AR-5
18 |      | AA-2 |      |      |      |      |      |      |      |       |      |       | AA-2
19 |      | AA-1 | AA-8 |      | AA-8 | AA-8 | AA-8 | AA-8 | AA-8 | AA-8  | AA-8 | AA-8  | AA-7
"""


@pytest.mark.parametrize("line", TABLE.strip().splitlines(), ids=lambda line: line[:2].strip())
def test_each_line_of_the_standard(line: str) -> None:
    number, *cells = (cell.strip() for cell in line.split("|"))
    happening = Happening(int(number))
    for column, cell in enumerate(cells, start=1):
        assert TRANSITIONS.get((happening, State(f"Sta{column}")), "") == cell


def test_an_independent_implementation_has_the_same_table() -> None:
    ours = {(f"Evt{event.value}", state.value): action for (event, state), action in TRANSITIONS.items()}
    assert ours == TRANSITION_TABLE
    for name, state in NEXT.items():
        theirs = ACTIONS[name][2]
        assert state.value in ((theirs,) if isinstance(theirs, str) else theirs)
