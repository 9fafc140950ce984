"""Inputs of a prediction: images, videos, folders, patterns, cameras and streams, and the names of their results."""
import glob
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from mindseg.data.samples import IMAGE_SUFFIXES
from mindseg.errors import UserError, shorten
from mindseg.outputs import check_apart, result_names

VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")
_SCHEMES = ("rtsp", "rtsps", "rtmp", "http", "https", "udp", "rtp", "tcp", "srt")


@dataclass(frozen=True)
class Stream:
    """A camera or an address that frames come from.

    Attributes:
        source: Number of a camera, or an address.
        label: The same for messages, without user name, password and query.
    """
    source: int | str
    label: str


@dataclass(frozen=True)
class Inputs:
    """All inputs of a call, each with the name of its results, relative to the output folder.

    Attributes:
        images: Image files.
        videos: Video files.
        streams: Cameras and addresses.
    """
    images: dict[Path, str]
    videos: dict[Path, str]
    streams: dict[Stream, str]


def find_inputs(texts: Sequence[str], output: Path) -> Inputs:
    """Finds what ``--input`` names.

    Results are named after the path below the input, without suffix; those of several inputs below the folder that
    all of them lie in. A file that is named twice counts once, and files in the output folder are left out.

    Args:
        texts: Images, videos, folders (with their sub-folders), patterns, numbers of cameras, or addresses.
        output: Output folder.

    Raises:
        UserError: One of them names nothing that can be read, or lies in the output folder.
    """
    streams = list(dict.fromkeys(stream for stream in map(_read_stream, texts) if stream))
    texts = [text for text in texts if _read_stream(text) is None]
    found = [find_files(text) for text in texts]
    for text, (base, _) in zip(texts, found, strict=True):
        check_apart(text if Path(text).exists() else base, output)
    base = Path(os.path.commonpath([os.path.abspath(base) for base, _ in found])) if found else Path()
    own = output.resolve()      # results of an earlier call are no input, if they lie inside the input folder
    files = {Path(os.path.abspath(folder)) / path.relative_to(folder): path for folder, paths in found for path in paths
             if not path.resolve().is_relative_to(own)}
    if not files and not streams:
        raise UserError(f"--input {' '.join(texts)}: holds nothing but results of an earlier call; add images or "
                        "videos")
    videos = [path for path in files if path.suffix.lower() in VIDEO_SUFFIXES]
    images = [path for path in files if path.suffix.lower() not in VIDEO_SUFFIXES]
    return Inputs(*({files[path]: name for path, name in _names(paths, base).items()} for paths in (images, videos)),
                  _stream_names(streams))


def find_files(text: str) -> tuple[Path, list[Path]]:
    """Turns an image, a video, a folder (with its sub-folders) or a pattern into files.

    Returns:
        The folder that output names are relative to, and the files in order of their names.

    Raises:
        UserError: Nothing there, or nothing that is an image or a video.
    """
    path = Path(text)
    suffixes = IMAGE_SUFFIXES + VIDEO_SUFFIXES
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in suffixes and p.is_file())
        base, searched = path, f"images ({' '.join(IMAGE_SUFFIXES)}) or videos ({' '.join(VIDEO_SUFFIXES)})"
    elif path.is_file():
        if path.suffix.lower() not in suffixes:
            raise UserError(f"--input {text}: neither an image nor a video by its name; known are {' '.join(suffixes)}")
        return path.parent, [path]
    elif glob.has_magic(text):
        files = sorted(Path(p) for p in glob.glob(text, recursive=True) if Path(p).suffix.lower() in suffixes)
        whole = [p for p in path.parts[:next(i for i, p in enumerate(path.parts) if glob.has_magic(p))]]
        base, searched = Path(*whole), "matches with a known suffix; quote the pattern against the shell"
    else:
        raise UserError(f"--input {text}: no such file or folder")
    if not files:
        raise UserError(f"--input {text}: no {searched} found")
    return base, files


def _names(files: Iterable[Path], base: Path) -> dict[Path, str]:
    names = result_names(path.relative_to(base) for path in files)
    return {base / path: name for path, name in names.items()}


def _read_stream(text: str) -> Stream | None:
    """The camera or address that a text names; None: it names files."""
    if re.fullmatch("[0-9]{1,4}", text) and not Path(text).exists():
        return Stream(int(text), f"camera {int(text)}")
    if not re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", text):
        return None
    try:
        parts = urlsplit(text)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise UserError(f"--input {shorten(text)}: no address of a stream; write it as rtsp://host:port/path") from None
    place = f"{host}:{port}" if port else host
    if parts.scheme.lower() not in _SCHEMES:
        raise UserError(f"--input {shorten(f'{parts.scheme}://{place}')}: streams come by {', '.join(_SCHEMES)}; give "
                        "the path of a file without file://")
    return Stream(text, f"{parts.scheme}://{place}{parts.path}")


def _stream_names(streams: list[Stream]) -> dict[Stream, str]:
    """Names such as ``camera0`` and ``host_554_path``, with a number where two would be equal."""
    names: dict[Stream, str] = {}
    for stream in streams:
        if isinstance(stream.source, int):
            name = f"camera{stream.source}"
        else:
            stem, suffix = os.path.splitext(stream.label.split("://", 1)[1])
            name = stem if suffix.lower() in VIDEO_SUFFIXES else stem + suffix
            name = re.sub("[^A-Za-z0-9.-]+", "_", name).strip("._")[:100] or "stream"
        taken, number = set(names.values()), 2
        unique = name
        while unique in taken:
            unique, number = f"{name}_{number}", number + 1
        names[stream] = unique
    return names
