from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from emoe.worker.text import TextStream


class ByteTokenizer:
    """Each token is a byte, as the hardest tokenizers do it; token 256 is special."""

    def decode(self, token_ids: list[int], *, skip_special_tokens: bool = True) -> str:
        return bytes(i for i in token_ids if i < 256).decode("utf-8", errors="replace")


def stream(text: str, stop: tuple[str, ...] = ()) -> tuple[list[str], bool]:
    answer = TextStream(ByteTokenizer(), stop)
    pieces = []
    for byte in text.encode():
        pieces.append(answer.push(byte))
        if answer.stopped:
            return pieces, True
    return [*pieces, answer.finish()], False


@given(st.text(max_size=40))
def test_the_pieces_make_the_whole_text(text: str) -> None:
    assert "".join(stream(text)[0]) == text


@given(st.lists(st.text(max_size=8).map(str.encode), max_size=8), st.integers(0, 3))
def test_tokens_that_come_together_make_the_same_text_whole_characters_first(texts: list[bytes], cut: int) -> None:
    data = b"".join(texts)
    answer, given_out, place = TextStream(ByteTokenizer(), ()), "", 0
    for text in texts:
        end = min(len(data), place + len(text) + cut)
        taken, piece = answer.push_all(data[place:end])
        assert taken == len(data[place:end])
        given_out += piece
        assert given_out == data[:end].decode(errors="ignore")
        place = end
    assert given_out + answer.push_all(data[place:])[1] + answer.finish() == data.decode()


def test_tokens_behind_a_stop_string_are_not_taken() -> None:
    answer = TextStream(ByteTokenizer(), ("END",))
    assert answer.push_all(b"abENDxyz") == (5, "ab")
    assert answer.stopped


def test_a_character_is_never_given_out_in_part() -> None:
    pieces, _ = stream("a\N{EURO SIGN}b")
    assert pieces == ["a", "", "", "\N{EURO SIGN}", "b", ""]


@given(text=st.text("ab\N{GREEK SMALL LETTER PI}", max_size=30), stop=st.text("ab", min_size=1, max_size=4))
def test_the_text_ends_before_the_first_stop_string(text: str, stop: str) -> None:
    pieces, stopped = stream(text, (stop,))
    assert stopped == (stop in text)
    assert "".join(pieces) == text.split(stop)[0]


def test_what_may_begin_a_stop_string_is_held_back_until_it_does_not() -> None:
    assert stream("xENx", ("END",))[0] == ["x", "", "", "ENx", ""]


def test_bytes_that_make_no_character_come_out_in_the_end() -> None:
    answer = TextStream(ByteTokenizer(), ())
    assert [answer.push(0x80) for _ in range(3)] == ["", "", ""]
    assert answer.finish() == "\N{REPLACEMENT CHARACTER}" * 3


def test_a_special_token_gives_no_text() -> None:
    answer = TextStream(ByteTokenizer(), ())
    assert answer.push(ord("a")) + answer.push(256) + answer.push(ord("b")) == "ab"
