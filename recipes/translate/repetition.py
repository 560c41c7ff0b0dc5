"""Something said four times in a row."""

import re
from collections import Counter

LONGEST, PIECE, FAR = 60, 6, 1_000_000_000  # characters
REPEATED = re.compile(rf"(.{{2,{LONGEST}}}?)\1{{3,}}", re.DOTALL)


def repetition(text: str) -> str | None:
    """What a text says four times in a row, or None.

    >>> repetition("a dog dog dog dog"), repetition("hahahaha"), repetition("the dog and the dog")
    (' dog', 'ha', None)
    """
    match = REPEATED.search(text) if may_repeat(text) else None
    return match.group(1) if match else None


def may_repeat(text: str) -> bool:
    """Whether `REPEATED` may find something; its search takes far longer.

    What stands four times with a space in it has a word three times. What has no space lies in one word.

    >>> may_repeat("the dog and the dog"), may_repeat("so a dog a dog a dog a dog"), may_repeat("hahahaha")
    (False, True, True)
    """
    words = text.split()
    blanks = len(text) - sum(map(len, words))
    thrice = len(words) - len({*words}) > 1 and max(Counter(words).values()) > 2
    if thrice or blanks > len(words) + 5:  # or eight blanks in a row
        return has_near_copies(text)
    return any(has_near_copies(word) for word in words if len(word) >= 8)


def has_near_copies(text: str) -> bool:
    """Whether pieces of six characters stand twice near each other, as in every text that `REPEATED` finds.

    Where a unit of p characters stands four times, 3p - 5 pieces in a row stand at most p characters before, too.

    >>> has_near_copies("the dog and the dog"), has_near_copies("so a dog a dog a dog a dog")
    (False, True)
    """
    places = range(len(text) - PIECE + 1)
    if len({text[i : i + PIECE] for i in places}) == len(places):
        return False
    last: dict[str, int] = {}
    count, nearest = 0, FAR
    for place in places:
        piece = text[place : place + PIECE]
        distance = place - last.get(piece, -FAR)
        last[piece] = place
        count, nearest = (0, FAR) if distance > LONGEST else (count + 1, min(nearest, distance))
        if count >= 3 * nearest - 5:
            return True
    return False
