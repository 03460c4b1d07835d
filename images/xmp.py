"""XMP data (ISO 16684), mended as text: a parser would write the packet anew, with other names."""

import re

# XMP's properties that speak of pixels, by namespace -> what of the result's size they are.
SIZES = {
    b"http://ns.adobe.com/tiff/1.0/": {b"ImageWidth": 0, b"ImageLength": 1},
    b"http://ns.adobe.com/exif/1.0/": {b"PixelXDimension": 0, b"PixelYDimension": 1},
}
UPRIGHT = (b"http://ns.adobe.com/tiff/1.0/", b"Orientation")
# Of what is not in the result: thumbnails, more XMP, a video or pictures behind it; places in
# pixels of the picture as it was.
LEFT_OUT = {
    b"http://ns.adobe.com/exif/1.0/": rb"SubjectArea|SubjectLocation|FocalPlane\w+",
    b"http://ns.adobe.com/xap/1.0/": rb"Thumbnails",
    b"http://ns.adobe.com/xmp/note/": rb"HasExtendedXMP",
    b"http://ns.google.com/photos/1.0/camera/": rb"Mo\w+|MicroVideo\w*",
    b"http://ns.google.com/photos/1.0/container/": rb"Directory",
    b"http://ns.adobe.com/hdr-gain-map/1.0/": rb"\w+",
}


REGIONS = {  # of the pixels as they are stored: names and places of faces
    b"http://www.metadataworkinggroup.com/schemas/regions/": rb"Regions",
    b"http://ns.microsoft.com/photo/1.2/": rb"RegionInfo",
    b"http://iptc.org/std/Iptc4xmpExt/2008-02-29/": rb"ImageRegion",
    b"http://ns.acdsee.com/regions/": rb"\w+",
}


def as_utf8(xmp: bytes | str | None) -> bytes:
    xmp = xmp.encode() if isinstance(xmp, str) else xmp or b""
    if xmp.startswith((b"\xff\xfe", b"\xfe\xff")):
        return xmp.decode("utf-16", "replace").encode()
    return xmp.strip(b"\0")


def mended_xmp(xmp: bytes, width: int, height: int) -> bytes:
    """XMP data of an upright picture with that many pixels."""
    xmp = _without(xmp, LEFT_OUT)
    sizes = (b"%d" % width, b"%d" % height)
    for uri, properties in SIZES.items():
        for name, which in properties.items():
            xmp = _with_value(xmp, uri, name, sizes[which])
    return _with_value(xmp, *UPRIGHT, b"1")


def without_regions(xmp: bytes) -> bytes:
    """XMP data of a picture that was turned or mirrored, without what was marked on it."""
    return _without(xmp, REGIONS)


def _without(xmp: bytes, properties: dict[bytes, bytes]) -> bytes:
    """Without the properties of some names, by namespace, be they attributes or elements."""
    for uri, names in properties.items():
        for prefix in _prefixes(xmp, uri):
            named = prefix + b":(?:" + names + b")"
            xmp = re.sub(rb"\s" + named + rb"\s*=\s*(?:\"[^\"]*\"|'[^']*')", b"", xmp)
            xmp = re.sub(rb"<(" + named + rb")\b[^>]*(?:/>|>.*?</\1\s*>)", b"", xmp, flags=re.S)
    return xmp


def _prefixes(xmp: bytes, uri: bytes) -> set[bytes]:
    """What stands for a namespace: "tiff" of xmlns:tiff="http://ns.adobe.com/tiff/1.0/"."""
    found = re.findall(rb"xmlns:([\w.-]+)\s*=\s*[\"']" + re.escape(uri) + rb"[\"']", xmp)
    return {re.escape(prefix) for prefix in found}


def _with_value(xmp: bytes, uri: bytes, name: bytes, value: bytes) -> bytes:
    """With a property's other value, whether it is an attribute or an element."""
    for prefix in _prefixes(xmp, uri):
        named = prefix + b":" + name
        xmp = re.sub(
            rb"(\s" + named + rb"\s*=\s*)([\"'])[^\"']*\2", rb"\g<1>\g<2>" + value + rb"\g<2>", xmp
        )
        xmp = re.sub(
            rb"(<" + named + rb"(?:\s[^>]*)?>)[^<]*(</)", rb"\g<1>" + value + rb"\g<2>", xmp
        )
    return xmp
