"""What may be attached to a message: the names, and the images that its HTML shows."""

import html
import re
from collections.abc import Collection, Iterable
from typing import Final
from urllib.parse import unquote

from feishu_mail_async._text import escape

__all__ = ["BLOCKED", "check_filename", "check_image", "check_references", "references"]

BLOCKED: Final = frozenset(
    (  # noqa: SIM905 (a list of a hundred literals takes a hundred lines)
        # programs and installers
        "action apk app bin com command dll exe gadget inf1 ins inx ipa isu jar job msi msp mst msu osx out paf "
        "pif prg run scr u3p "
        # scripts and sources
        "applescript asp awk bash bat cmd coffee csh dart es fish go hta js jse ksh lua php pl pm "
        "ps ps1 ps1xml ps2 ps2xml psc1 psc2 psd1 psdm1 psm1 pssc py pyc pyo pyw pyz pyzw rb sct sh shb shs tcsh "
        "terminal ts tsx vb vbe vbs vbscript ws wsc wsf wsh zsh "
        # settings, shortcuts, consoles and help
        "cdxml chm cpl lnk msc msh msh1 msh1xml msh2 msh2xml mshxml plist pls reg rgs scf"
    ).split()
)
"""Extensions that the platform refuses, in small letters, as its command line has them; HTML is not among them."""

_SIGNATURES: Final = {
    "image/jpeg": re.compile(rb"\xff\xd8\xff"),
    "image/png": re.compile(rb"\x89PNG\r\n\x1a\n"),
    "image/gif": re.compile(rb"GIF8[79]a"),
    "image/webp": re.compile(rb"RIFF.{4}WEBP", re.DOTALL),
}
"""Types that an inline image may have, and how their files begin."""

_COMMENT: Final = re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL)
_REFERENCE: Final = re.compile(
    r"""(?:=|\burl\()\s*+(?:"\s*+cid:([^"]*)|'\s*+cid:([^']*)|cid:([^\s"'<>)]*))""", re.IGNORECASE
)
"""`cid:` where an attribute or a style begins to name an address. Mere text may hold it too."""


def check_filename(filename: str) -> None:
    """Raise ValueError if the platform refuses files of this name.

    Args:
        filename: the name; its last extension counts.
    """
    # Windows drops dots and blanks at the end of a name, so they hide no extension.
    _, dot, extension = filename.rstrip(". ").rpartition(".")
    if dot and extension.lower() in BLOCKED:
        raise ValueError(
            f"message: the platform refuses attachments like {escape(filename)!r} (.{extension.lower()}); "
            "put it into an archive or send a link"
        )


def check_image(cid: str, media_type: str, head: bytes) -> None:
    """Raise ValueError unless this can be an inline image.

    Args:
        cid: its Content-ID, without brackets.
        media_type: its Content-Type, without parameters.
        head: the first 12 bytes of its content, or more.
    """
    signature = _SIGNATURES.get(media_type)
    if signature is None:
        raise ValueError(
            f"message: the inline image {escape(cid)!r} is of type {escape(media_type)}; only JPEG, PNG, GIF and "
            "WebP can be inline: convert it, or attach it as a file"
        )
    if signature.match(head) is None:
        raise ValueError(
            f"message: the inline image {escape(cid)!r} is said to be {media_type}, but its content is not; "
            "give it its true type"
        )


def references(bodies: Iterable[str]) -> set[str]:
    """Return the Content-IDs that HTML bodies name.

    Args:
        bodies: the HTML bodies.
    """
    return {
        unquote("".join(found).strip()) for body in bodies for found in _REFERENCE.findall(html.unescape(body))
    }


def check_references(bodies: Collection[str], inline: Iterable[str], cids: Collection[str]) -> None:
    """Raise ValueError unless the HTML shows every inline image, and there is a part for whatever it shows.

    Args:
        bodies: the HTML bodies.
        inline: the Content-IDs of the inline images, without brackets.
        cids: the Content-IDs of all parts, without brackets.
    """
    named = references(bodies)
    for cid in inline:
        if cid not in named:
            raise ValueError(
                f"message: its HTML does not show the inline image {escape(cid)!r}; "
                f'name it there (<img src="cid:{escape(cid)}">), or attach it as a file'
            )
    # What a comment names is for some programs only, and need not be there.
    for cid in sorted(references(_COMMENT.sub("", body) for body in bodies).difference(cids)):
        raise ValueError(
            f"message: its HTML shows cid:{escape(cid)}, but no part has this Content-ID; "
            "add the image, or take the reference out"
        )
