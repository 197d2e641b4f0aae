"""The word pieces that byte-pair encoding yields, and the tokenizer made of them."""

from bench.data.sources import vocabulary


def test_merges_follow_frequency_then_the_alphabet() -> None:
    # Counts: (a, ##b) 5, (##b, ##c) 3, (x, ##y) 3. After the first merge (##b, ##c) is gone and (ab, ##c) has 3.
    found = vocabulary.pieces({"abc": 3, "ab": 2, "xy": 3, "once": 1}, 100)
    assert found == ["##b", "a", "##c", "##y", "x", "ab", "abc", "xy"]


def test_the_size_is_a_limit() -> None:
    assert vocabulary.pieces({"abc": 3, "ab": 2}, 4) == ["##b", "a", "##c", "ab"]
    assert vocabulary.pieces({"abc": 3, "ab": 2}, 2) == ["##b", "a"]


def test_repeated_letters_merge_from_the_left() -> None:
    # a ##a ##a ##a -> a ##aa ##a; then (##aa, ##a) comes before (a, ##aa).
    assert vocabulary.pieces({"aaaa": 2}, 100) == ["##a", "a", "##aa", "##aaa", "aaaa"]


def test_a_tokenizer_lowers_case_and_frames_the_text() -> None:
    tokenizer = vocabulary.build(["walking walks", "walking talks", "[MASK] walks"], 60)
    encoding = tokenizer.encode("WALKING [MASK] ω")
    assert encoding.tokens == ["[CLS]", "walking", "[MASK]", "[UNK]", "[SEP]"]
    assert tokenizer.get_vocab_size() <= 60


def test_word_order_of_the_texts_does_not_matter() -> None:
    texts = ["alpha beta beta", "gamma alpha", "delta gamma delta"]
    assert vocabulary.build(texts, 40).to_str() == vocabulary.build(texts[::-1], 40).to_str()
