"""Reading archives: what is wanted comes out as it went in; hostile and damaged archives are refused."""

import bz2
import gzip
import io
import os
import stat
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.data.sources.archives import read_members
from bench.errors import InputError

FILES = {
    "set/images/1.jpg": bytes(range(256)) * 40,
    "set/images/2.jpg": b"",
    "set/labels.txt": "Größe\n".encode(),
    "set/other.bin": os.urandom(3000),
    "set/" + "long/" * 40 + "name.txt": b"deep",
}
TARS = {"a.tar": "w", "a.tar.gz": "w:gz", "a.tgz": "w:gz", "a.tar.bz2": "w:bz2", "a.tar.xz": "w:xz"}


def everything(name: str) -> bool:
    return True


def nothing(name: str) -> bool:
    return False


def member(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def make_tar(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for info, content in members:
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def make_zip(path: Path, members: list[tuple[str | zipfile.ZipInfo, bytes]]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for info, content in members:
            archive.writestr(info, content, zipfile.ZIP_DEFLATED)
    return path


def make(path: Path, files: dict[str, bytes]) -> Path:
    if path.suffix == ".zip":
        return make_zip(path, list(files.items()))
    return make_tar(path, [(member(name), content) for name, content in files.items()], TARS[path.name])


@pytest.mark.parametrize("name", [*TARS, "a.zip"])
def test_wanted_members_come_out_as_they_went_in(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, FILES)
    assert read_members(path, everything) == FILES
    assert list(read_members(path, everything)) == list(FILES)
    expected = {name: content for name, content in FILES.items() if name.endswith(".jpg")}
    assert read_members(path, lambda name: name.endswith(".jpg")) == expected
    assert read_members(path, nothing) == {}
    assert os.listdir(tmp_path) == [name]


def test_a_folder_is_read_like_its_archive(tmp_path: Path) -> None:
    for name, content in {**FILES, "__MACOSX/set/1": b"x", "set/._1.jpg": b"x"}.items():
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "link").symlink_to(tmp_path / "out")
    (tmp_path / "out" / "set" / "inside.jpg").symlink_to("images/1.jpg")
    (tmp_path / "out" / "folder_inside").symlink_to("set")
    expected = FILES | {"set/inside.jpg": FILES["set/images/1.jpg"]}
    assert read_members(tmp_path / "out", everything) == expected
    assert read_members(tmp_path / "link", everything) == expected
    with pytest.raises(InputError, match="more than"):
        read_members(tmp_path / "out", everything, limit=sum(map(len, expected.values())) - 1)


@pytest.mark.parametrize("target", ["secret", ".", "../outside-too"])
def test_links_out_of_a_folder_are_refused(tmp_path: Path, target: str) -> None:
    (tmp_path / "secret").write_text("s")
    (tmp_path / "out").mkdir()
    (tmp_path / "outside-too").mkdir()
    (tmp_path / "out" / "link").symlink_to(tmp_path / target)
    with pytest.raises(InputError, match="leads out"):
        read_members(tmp_path / "out", nothing)


def test_fifos_in_a_folder_are_not_opened_and_refused_if_wanted(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert read_members(tmp_path, nothing) == {}
    with pytest.raises(InputError, match="'pipe' is a link or a device"):
        read_members(tmp_path, everything)


def test_a_file_in_a_folder_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "locked").write_text("x")
    (tmp_path / "locked").chmod(0)
    if not os.access(tmp_path / "locked", os.R_OK):  # the superuser may read everything
        with pytest.raises(InputError, match=r"Permission denied.*locked"):
            read_members(tmp_path, everything)


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_names_lose_a_leading_dot_and_macos_additions_are_left_out(tmp_path: Path, name: str) -> None:
    path = make(
        tmp_path / name,
        {"./set/1.jpg": b"1", "__MACOSX/set/1.jpg": b"x", "set/._1.jpg": b"x", "set/_1.jpg": b"2", "set/.hidden": b"3"},
    )
    assert read_members(path, everything) == {"set/1.jpg": b"1", "set/_1.jpg": b"2", "set/.hidden": b"3"}


def test_a_link_that_macos_added_is_left_out_too(tmp_path: Path) -> None:
    path = make_tar(tmp_path / "a.tar", [(member("._link", tarfile.SYMTYPE, "a"), b""), (member("a"), b"1")])
    assert read_members(path, everything) == {"a": b"1"}


@pytest.mark.parametrize("archive", ["a.tar", "a.zip"])
def test_dots_within_names_are_no_way_out(tmp_path: Path, archive: str) -> None:
    files = {"a..b/...": b"1", "..c": b"2", "d..": b"3"}
    assert read_members(make(tmp_path / archive, files), everything) == files


def zip_link(name: str, kind: int = stat.S_IFLNK) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system, info.external_attr = 3, (kind | 0o644) << 16
    return info


def test_links_within_an_archive_are_ignored_unless_wanted(tmp_path: Path) -> None:
    tar = make_tar(
        tmp_path / "a.tar",
        [
            (member("a/file"), b"f"),
            (member("a/b/symbolic", tarfile.SYMTYPE, "../file"), b""),
            (member("hard", tarfile.LNKTYPE, "a/file"), b""),
        ],
    )
    zipped = make_zip(tmp_path / "a.zip", [("a/file", b"f"), (zip_link("a/b/symbolic"), b"../file")])
    for path in (tar, zipped):
        assert read_members(path, lambda name: name == "a/file") == {"a/file": b"f"}
    for path, name in ((tar, "a/b/symbolic"), (tar, "hard"), (zipped, "a/b/symbolic")):
        with pytest.raises(InputError, match=f"'{name}' is a link"):
            read_members(path, lambda entry, name=name: entry == name)  # type: ignore[misc]


@pytest.mark.parametrize("kind", [tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE])
def test_devices_and_fifos_in_a_tar_are_refused_if_wanted(tmp_path: Path, kind: bytes) -> None:
    path = make_tar(tmp_path / "a.tar", [(member("device", kind), b""), (member("file"), b"f")])
    assert read_members(path, lambda name: name == "file") == {"file": b"f"}
    with pytest.raises(InputError, match="'device' is a link or a device"):
        read_members(path, everything)


def test_devices_and_fifos_in_a_zip_are_refused_if_wanted(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "a.zip", [(zip_link("device", stat.S_IFIFO), b""), ("file", b"f")])
    assert read_members(path, lambda name: name == "file") == {"file": b"f"}
    with pytest.raises(InputError, match="'device' is a link or a device"):
        read_members(path, everything)


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
def test_the_limit_counts_the_wanted_contents_together(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, {"a": bytes(600), "b": bytes(400), "c": bytes(5000)})
    assert len(read_members(path, lambda name: name != "c", limit=1000)) == 2
    with pytest.raises(InputError, match="'b' goes beyond"):
        read_members(path, lambda name: name != "c", limit=999)


@pytest.mark.parametrize("name", ["a.tgz", "a.tar.bz2", "a.tar.xz", "a.zip"])
def test_a_bomb_is_refused_before_it_fills_the_memory(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / name, {"zeros": bytes(30_000_000)})
    assert path.stat().st_size < 40_000
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="'zeros' goes beyond"):
            read_members(path, everything, limit=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_a_zip_bomb_whose_header_lies_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"zeros": bytes(30_000_000)})
    content = path.read_bytes()
    assert content.count(struct.pack("<L", 30_000_000)) == 2
    path.write_bytes(content.replace(struct.pack("<L", 30_000_000), struct.pack("<L", 10)))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="damaged"):
            read_members(path, everything, limit=1_000_000)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


def test_a_sparse_tar_member_counts_with_the_size_it_unfolds_to(tmp_path: Path) -> None:
    info = member("sparse")
    info.pax_headers = {"GNU.sparse.map": "0,1", "GNU.sparse.size": str(2**45), "GNU.sparse.name": "sparse"}
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as archive:
        info.size = 1
        archive.addfile(info, io.BytesIO(b"x"))
    tracemalloc.start()
    try:
        with pytest.raises(InputError, match="'sparse' goes beyond"):
            read_members(path, everything, limit=30_000_000)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["a.tar", "a.tgz", "a.zip"])
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_two_wanted_files_of_one_name_are_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    twice = [("d/a", b"1"), ("b", b"2"), ("./d/a", b"3")]
    if name == "a.zip":
        make_zip(path, list(twice))
    else:
        make_tar(path, [(member(name), content) for name, content in twice], TARS[name])
    assert read_members(path, lambda name: name == "b") == {"b": b"2"}
    with pytest.raises(InputError, match="two files named 'd/a'"):
        read_members(path, everything)


def test_an_encrypted_zip_is_refused(tmp_path: Path) -> None:
    path = make(tmp_path / "a.zip", {"a": b"content"})
    content = bytearray(path.read_bytes())
    content[6] |= 1
    content[content.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match="is encrypted"):
        read_members(path, everything)


# Also cut where a member ends, where tarfile itself would see no damage.
@pytest.mark.parametrize("wanted", [everything, nothing])
@pytest.mark.parametrize("name", [*TARS, "a.zip"])
def test_truncated_archives_are_refused_wherever_they_end(
    tmp_path: Path, name: str, wanted: Callable[[str], bool]
) -> None:
    content = make(tmp_path / name, FILES).read_bytes()
    ends = {len(content) // 4, len(content) // 2, len(content) - 1}
    if name == "a.tar":
        ends = {600, 512, 512 + 10240, 2 * 512 + 10240, 2 * 512 + 10240 + 100, 12 * 1024}
    for end in ends:
        path = tmp_path / "short" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content[:end])
        with pytest.raises(InputError, match="truncated or damaged; delete it and download it again") as refusal:
            read_members(path, wanted)
        assert str(path) in str(refusal.value)


def test_damage_that_leaves_the_length_as_it_was_is_noticed(tmp_path: Path) -> None:
    for name, at in (("a.tgz", 1000), ("a.tgz", -6), ("a.tar.bz2", 1000), ("a.tar.xz", 1000), ("a.zip", 100)):
        path = make(tmp_path / name, {"a": os.urandom(3000), "b": os.urandom(3000)})
        content = bytearray(path.read_bytes())
        content[at] ^= 0xFF
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged"):
            read_members(path, everything)


@pytest.mark.parametrize("length", [2**20, 2**21, 5 * 2**20])
def test_a_checksum_counts_also_behind_the_end_of_the_tar(tmp_path: Path, length: int) -> None:
    plain = make(tmp_path / "a.tar", {"a": b"1"}).read_bytes()
    content = bytearray(gzip.compress(plain.ljust(length, b"\0")))
    path = tmp_path / "a.tgz"
    path.write_bytes(content)
    assert read_members(path, everything) == {"a": b"1"}
    content[-6] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read_members(path, everything)


def test_a_damaged_header_in_the_middle_of_a_tar_is_not_its_end(tmp_path: Path) -> None:
    path = make(tmp_path / "a.tar", {"a": b"1", "b": b"2", "c": b"3"})
    content = bytearray(path.read_bytes())
    content[1024] ^= 0xFF  # the first letter of the second name
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        read_members(path, everything)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"<!DOCTYPE html>" * 100,
        bytes(range(1, 255)) * 9,
        gzip.compress(b"text" * 999, mtime=0),
        bz2.compress(b"t" * 999),
    ],
    ids=["empty", "page", "noise", "gz", "bz2"],
)
def test_what_is_no_archive_is_refused_with_what_is_legal(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.tar.gz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"a\.tar\.gz cannot be read \(.+\)\. Legal are tar"):
        read_members(path, everything)


def test_a_missing_archive_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.zip cannot be read"):
        read_members(tmp_path / "none.zip", everything)


def test_a_fault_of_the_caller_is_no_damage_of_the_archive(tmp_path: Path) -> None:
    path = make(tmp_path / "a.tgz", {"a": b"1"})
    with pytest.raises(ValueError, match="invalid literal"):
        read_members(path, lambda name: int(name) > 0)
