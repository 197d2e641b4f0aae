"""A WordPiece vocabulary that is the same in every process.

The trainer in `tokenizers` breaks ties in the order of a hash table that is seeded anew in each process, so that two
builds from the same texts differ.
"""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD = 0
CONTINUES = "##"
LEAST_COUNT = 2


def build(texts: Iterable[str], size: int) -> Tokenizer:
    """A lower-casing WordPiece tokenizer with at most `size` entries; the first are those of `SPECIAL`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordPiece
    from tokenizers.normalizers import BertNormalizer
    from tokenizers.pre_tokenizers import BertPreTokenizer
    from tokenizers.processors import TemplateProcessing

    normalizer, splitter = BertNormalizer(lowercase=True), BertPreTokenizer()
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)))
    entries = [*SPECIAL, *pieces(words, size - len(SPECIAL))]
    tokenizer = Tokenizer(WordPiece({entry: i for i, entry in enumerate(entries)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = splitter
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, SPECIAL.index(name)) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    return tokenizer


def pieces(words: Mapping[str, int], size: int) -> list[str]:
    """At most `size` word pieces: characters, then what merging the most frequent neighbours yields.

    Byte-pair encoding (Sennrich et al. 2016, algorithm 1) on words that occur at least twice; equally frequent pairs
    merge in alphabetical order. Pieces inside a word begin with `##`.
    """
    kept = sorted((word, count) for word, count in words.items() if count >= LEAST_COUNT)
    spelled = [[word[0], *(CONTINUES + character for character in word[1:])] for word, _ in kept]
    frequency = Counter[str]()
    pair_count = Counter[tuple[str, str]]()
    words_with = defaultdict[tuple[str, str], set[int]](set)
    for i, parts in enumerate(spelled):
        for part in parts:
            frequency[part] += kept[i][1]
        for pair in pairwise(parts):
            pair_count[pair] += kept[i][1]
            words_with[pair].add(i)
    found = dict.fromkeys(sorted(frequency, key=lambda part: (-frequency[part], part))[:size])
    queue = [(-count, pair) for pair, count in pair_count.items()]
    heapq.heapify(queue)
    while len(found) < size and queue:
        negative, pair = heapq.heappop(queue)
        if pair_count[pair] != -negative:
            continue  # an entry from before another merge changed the count
        if -negative < LEAST_COUNT:
            break
        merged = pair[0] + pair[1].removeprefix(CONTINUES)
        found[merged] = None
        changed = set()
        for i in sorted(words_with.pop(pair)):
            before = spelled[i]
            after = spelled[i] = _merge(before, pair, merged)
            for neighbours in pairwise(before):
                pair_count[neighbours] -= kept[i][1]
                changed.add(neighbours)
            for neighbours in pairwise(after):
                pair_count[neighbours] += kept[i][1]
                words_with[neighbours].add(i)
                changed.add(neighbours)
        for neighbours in changed:
            if pair_count[neighbours] > 0:
                heapq.heappush(queue, (-pair_count[neighbours], neighbours))
    return list(found)


def _merge(parts: list[str], pair: tuple[str, str], merged: str) -> list[str]:
    after = []
    i = 0
    while i < len(parts):
        if (parts[i], *parts[i + 1 : i + 2]) == pair:
            after.append(merged)
            i += 2
        else:
            after.append(parts[i])
            i += 1
    return after
