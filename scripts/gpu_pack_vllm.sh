#!/usr/bin/env bash
# vLLM as packed for a GPU host, in three parts (docs/gpu.md), in two smaller ones:
#
#   gpu_pack_vllm.sh PARTS_FOLDER DEST      reads PARTS_FOLDER/p?/part_*, writes DEST/p1/part_aa and DEST/p2/part_ab
#
# On the host, as with the three: cat part_* | tar -xJf - -C SITE --strip-components=1
#
# Left out are data files that are opened when somebody uses them: translations of country names, Mistral's tokenizers.
# Machine code for other GPUs than Hopper stays in its place but is blanked, so that it takes no room when compressed: a
# driver takes the code for its own GPU and looks at no other; PTX, from which it could make some, is kept. KEEP=1 leaves
# that code alone (then the parts are larger).
set -euo pipefail
parts=$(realpath "${1:?usage: gpu_pack_vllm.sh PARTS_FOLDER DEST}")
mkdir -p "${2:?usage: gpu_pack_vllm.sh PARTS_FOLDER DEST}"/p{1,2}
dest=$(realpath "$2")
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

cat "$parts"/p?/part_* | tar -xJf - -C "$work"
python3 - "$work" "${KEEP:-}" <<'PY'
import pathlib
import re
import struct
import sys
import tarfile

LEFT_OUT = re.compile(r"pycountry/locales/|mistral_common/data/(?:tekken|mistral_instruct_tokenizer|tokenizer\.model)|\.pyc$")
work, keep = pathlib.Path(sys.argv[1]), bool(sys.argv[2])
MAGIC = struct.pack("<I", 0xBA55ED50)
MACHINE_CODE = 2


def blank(path):
    """Zeros in place of machine code for GPUs that are no Hopper; returns how many bytes."""
    data = bytearray(path.read_bytes())
    position = blanked = 0
    while (start := data.find(MAGIC, position)) >= 0:
        version, header, size = struct.unpack_from("<HHQ", data, start + 4)
        entry, end = start + header, start + header + size
        position = start + 4
        if version != 1 or header != 16 or end > len(data):
            continue
        entries = []
        while entry < end:
            kind, _, header, length = struct.unpack_from("<HHIQ", data, entry)
            [arch] = struct.unpack_from("<I", data, entry + 28)
            if kind not in (1, 2) or header < 64 or entry + header + length > end or not 30 <= arch <= 200:
                break  # not what we take it for
            entries.append((kind, arch, entry + header, length))
            entry += header + length
        if entry != end:
            print(f"  left alone: {path.name} at {start}, {size} bytes")
            continue
        for kind, arch, begin, length in entries:
            if kind == MACHINE_CODE and arch // 10 != 9:
                data[begin : begin + length] = bytes(length)
                blanked += length
        position = end
    if blanked:
        path.write_bytes(data)
    return blanked


libraries, others = [], []
for path in sorted((work / "site").rglob("*")):
    name = str(path.relative_to(work))
    if LEFT_OUT.search(name):
        continue
    (libraries if path.suffix == ".so" or ".so." in path.name else others).append(name)
if not keep:
    for name in libraries:
        if blanked := blank(work / name):
            print(f"{name}: {blanked / 2**20:.1f} MiB blanked")
with tarfile.open(work / "all.tar", "w") as archive:
    for name in libraries:
        archive.add(work / name, name, recursive=False)
    border = archive.offset  # libraries are compressed with a filter for machine code, the rest without
    for name in others:
        archive.add(work / name, name, recursive=False)
(work / "border").write_text(str(border))
PY
rm -r "$work/site"
border=$(cat "$work/border")
{
  head -c "$border" "$work/all.tar" | xz -T1 --x86 --lzma2="preset=${PRESET:-9},dict=128MiB"
  tail -c "+$((border + 1))" "$work/all.tar" | xz -T1 --lzma2="preset=${PRESET:-9},dict=128MiB"
} > "$work/all.tar.xz"
size=$(stat -c %s "$work/all.tar.xz")
split -b $(((size + 1) / 2)) "$work/all.tar.xz" "$work/part_"
mv "$work/part_aa" "$dest/p1/"
mv "$work/part_ab" "$dest/p2/"
ls -l "$dest"/p{1,2}
