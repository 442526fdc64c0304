"""What a shard's members are put together to: keys, kinds and places by webdataset's rule."""

import io
import tarfile

from sparc_ref.data.tar import Sample, read_shard


def shard(path, names):
    """Every member holds its own name."""
    with tarfile.open(path, "w") as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.size = len(name.encode())
            file.addfile(info, io.BytesIO(name.encode()))
    return path


def read(path, **options):
    """key, name of the picture, name of the text, kind: names as the bytes at the places that were found."""
    content, found = path.read_bytes(), read_shard(path, **options)

    def held(member):
        assert content[member.offset:member.offset + member.size].decode().removeprefix("./") == member.name
        return member.name

    assert all(isinstance(s, Sample) for s in found.samples)
    return [(s.key, held(s.picture), held(s.caption), s.kind) for s in found.samples], dict(found.skipped)


def test_a_sample_is_a_run_of_one_path_up_to_the_first_dot_of_its_name(tmp_path):
    """Extensions in any case; what a second dot begins belongs to the extension; folders keep samples of a name apart."""
    path = shard(tmp_path / "s.tar", ["a.JPG", "a.Txt", "b/0.png", "b/0.txt", "c/0.png", "c/0.txt", "c.d/1.jpeg", "c.d/1.json",
                                      "2.seg.png", "2.webp", "2.txt", "./3.png", "3.txt", "4.png", "5.txt"])
    samples, skipped = read(path)
    assert samples == [("a", "a.JPG", "a.Txt", "txt"), ("b/0", "b/0.png", "b/0.txt", "txt"),
                       ("c/0", "c/0.png", "c/0.txt", "txt"),
                       ("c.d/1", "c.d/1.jpeg", "c.d/1.json", "json"), ("2", "2.webp", "2.txt", "txt"),
                       ("3", "3.png", "3.txt", "txt")]
    assert skipped == {"member is neither picture nor caption": 1, "picture without a caption": 1,
                       "caption without a picture": 1}


def test_of_several_texts_the_one_that_is_preferred(tmp_path):
    path = shard(tmp_path / "s.tar", ["0.json", "0.png", "0.txt", "1.txt", "1.json", "1.png", "2.png", "2.cls"])
    for prefer, other in (("txt", "json"), ("json", "txt")):
        samples, skipped = read(path, prefer=prefer)
        assert samples == [(k, f"{k}.png", f"{k}.{prefer}", prefer) for k in "01"]
        alone, _ = read(path, prefer=prefer, texts=(other,))
        assert alone == [(k, f"{k}.png", f"{k}.{other}", other) for k in "01"], "none but those that are asked for"
    labels, skipped = read(path, prefer="cls", texts=("cls",), what="label")
    assert labels == [("2", "2.png", "2.cls", "cls")]
    assert skipped == {"member is neither picture nor label": 4, "picture without a label": 2}


def test_names_that_stand_among_other_fields_are_read_whole(tmp_path):
    """Long names and other alphabets, as PAX writes them, after fields that say something else."""
    names = [f"{'long' * 40}/{n}.{end}" for n in "01é" for end in ("png", "txt")]
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.PAX_FORMAT) as file:
        for name in names:
            info = tarfile.TarInfo(name)
            info.pax_headers, info.size = {"comment": "x" * 30, "mtime": "1.5"}, len(name.encode())
            file.addfile(info, io.BytesIO(name.encode()))
    samples, skipped = read(tmp_path / "s.tar")
    assert samples == [(a.removesuffix(".png"), a, b, "txt") for a, b in zip(names[::2], names[1::2])] and not skipped
