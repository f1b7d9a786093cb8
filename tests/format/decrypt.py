"""Decrypts a database, its journal and its log by docs/format.md alone, with Python's own library.

    decrypt.py DATABASE OUT [--raw FILE] [--passphrase TEXT] [--keystore FILE] [--keystore-passphrase TEXT]

Writes OUT, OUT-journal and OUT-wal, which plain SQLite recovers and reads. Ends with an error where no key opens
the envelope or something does not authenticate that has to.
"""

import argparse
import base64
import hashlib
import hmac
import json
import os
import struct
import sys

RESERVE = 48
COPY = 8192
PAGES_AT = 2 * COPY
GAP_AT, GAP = 0x3FFF0000, 0x10000
LOCKS_AT = 0x40000000
RECORD_0 = 32 + 4 + 16 + 16
SQLITE_MAGIC = bytes.fromhex("d9d505f920a163d7")


class Refused(Exception):
    pass


# ---- AES-256, FIPS 197: encryption of single blocks ----


def make_tables():
    logs, powers = [0] * 256, [0] * 256
    x = 1
    for i in range(255):
        powers[i], logs[x] = x, i
        x ^= (x << 1) ^ (0x11B if x & 0x80 else 0)
        x &= 0xFF
    box = []
    for a in range(256):
        b = powers[(255 - logs[a]) % 255] if a else 0
        s = 0x63
        for shift in range(5):
            s ^= ((b << shift) | (b >> (8 - shift))) & 0xFF
        box.append(s)
    double = [(a << 1) ^ (0x11B if a & 0x80 else 0) for a in range(256)]
    # SubBytes, ShiftRows and MixColumns of one byte, as the word that it adds to its column.
    column = [int.from_bytes(bytes((double[s], s, s, double[s] ^ s)), "big") for s in box]
    tables = [[word >> 8 * r | word << 32 - 8 * r & 0xFFFFFFFF for word in column] for r in range(4)]
    return box, tables


SBOX, (T0, T1, T2, T3) = make_tables()


class Aes:
    def __init__(self, key):
        w = list(struct.unpack(">8I", key))
        rcon = 1
        for i in range(8, 60):
            t = w[-1]
            if i % 8 == 0:
                t = (t << 8 | t >> 24) & 0xFFFFFFFF
            if i % 4 == 0:
                t = int.from_bytes(bytes(SBOX[b] for b in t.to_bytes(4, "big")), "big")
            if i % 8 == 0:
                t ^= rcon << 24
                rcon = rcon << 1 ^ (0x11B if rcon & 0x80 else 0)
            w.append(w[i - 8] ^ t)
        self.keys = [tuple(w[i : i + 4]) for i in range(0, 60, 4)]

    def block(self, data):
        a, b, c, d = (x ^ k for x, k in zip(struct.unpack(">4I", data), self.keys[0]))
        for k0, k1, k2, k3 in self.keys[1:14]:
            a, b, c, d = (
                T0[a >> 24] ^ T1[b >> 16 & 255] ^ T2[c >> 8 & 255] ^ T3[d & 255] ^ k0,
                T0[b >> 24] ^ T1[c >> 16 & 255] ^ T2[d >> 8 & 255] ^ T3[a & 255] ^ k1,
                T0[c >> 24] ^ T1[d >> 16 & 255] ^ T2[a >> 8 & 255] ^ T3[b & 255] ^ k2,
                T0[d >> 24] ^ T1[a >> 16 & 255] ^ T2[b >> 8 & 255] ^ T3[c & 255] ^ k3,
            )
        s, last = SBOX, self.keys[14]
        words = ((a, b, c, d), (b, c, d, a), (c, d, a, b), (d, a, b, c))
        return struct.pack(
            ">4I",
            *(
                (s[w >> 24] << 24 | s[x >> 16 & 255] << 16 | s[y >> 8 & 255] << 8 | s[z & 255]) ^ k
                for (w, x, y, z), k in zip(words, last)
            ),
        )


def xor(a, b):
    return (int.from_bytes(a, "big") ^ int.from_bytes(b, "big")).to_bytes(len(a), "big")


def counted(aes, counter, width, data):
    """Data xor AES of counter blocks, of which the last `width` bytes count up."""
    high, low = counter[: 16 - width], int.from_bytes(counter[16 - width :], "big")
    count, mask = -(-len(data) // 16), (1 << 8 * width) - 1
    stream = b"".join(aes.block(high + (low + i & mask).to_bytes(width, "big")) for i in range(count))
    return xor(data, stream[: len(data)]) if data else b""


# ---- GCM, NIST SP 800-38D, and XAES-256-GCM ----


class Gcm:
    def __init__(self, key):
        self.aes = Aes(key)
        h = int.from_bytes(self.aes.block(bytes(16)), "big")
        bits = [h]
        for _ in range(127):
            h = h >> 1 ^ (0xE1 << 120 if h & 1 else 0)
            bits.append(h)
        # products[i][byte]: that byte, as byte i of a block, times H.
        self.products = []
        for i in range(16):
            row = [0] * 256
            for bit in range(8):
                row[0x80 >> bit] = bits[8 * i + bit]
            for byte in range(256):
                low = byte & -byte
                row[byte] = row[low] ^ row[byte ^ low] if byte != low else row[byte]
            self.products.append(row)

    def hash(self, data):
        y = 0
        for at in range(0, len(data), 16):
            y ^= int.from_bytes(data[at : at + 16], "big")
            block, y = y.to_bytes(16, "big"), 0
            for row, byte in zip(self.products, block):
                y ^= row[byte]
        return y.to_bytes(16, "big")

    def open(self, nonce, aad, cipher, tag):
        def padded(data):
            return data + bytes(-len(data) % 16)

        lengths = struct.pack(">2Q", 8 * len(aad), 8 * len(cipher))
        digest = self.hash(padded(aad) + padded(cipher) + lengths)
        first = nonce + b"\0\0\0\1"
        if not hmac.compare_digest(xor(digest, self.aes.block(first)), tag):
            return None
        return counted(self.aes, nonce + b"\0\0\0\2", 4, cipher)


class Xaes:
    def __init__(self, key):
        self.aes, self.keys = Aes(key), {}
        block = int.from_bytes(self.aes.block(bytes(16)), "big")
        self.k1 = ((block << 1) & (1 << 128) - 1 ^ (0x87 if block >> 127 else 0)).to_bytes(16, "big")

    def open(self, nonce, aad, cipher, tag):
        prefix = nonce[:12]
        if prefix not in self.keys:
            halves = (bytes([0, n, 0x58, 0]) + prefix for n in (1, 2))
            self.keys[prefix] = Gcm(b"".join(self.aes.block(xor(half, self.k1)) for half in halves))
        return self.keys[prefix].open(nonce[12:], aad, cipher, tag)


class CtrHmac:
    def __init__(self, subkey):
        self.aes = Aes(hkdf(subkey, b"", b"sqlite-tde v1 ctr"))
        self.mac = hkdf(subkey, b"", b"sqlite-tde v1 hmac")

    def open(self, nonce, aad, cipher, tag):
        text = aad + nonce + cipher + struct.pack(">Q", 8 * len(aad))
        if not hmac.compare_digest(hmac.digest(self.mac, text, "sha256")[:28], tag):
            return None
        return counted(self.aes, nonce, 16, cipher)


# ---- AEGIS-256X4, draft-irtf-cfrg-aegis-aead ----


def aes_round(state, key):
    """One round of AES, of 16 bytes as a number."""
    a, b, c, d = state >> 96, state >> 64 & 0xFFFFFFFF, state >> 32 & 0xFFFFFFFF, state & 0xFFFFFFFF
    return (
        (T0[a >> 24] ^ T1[b >> 16 & 255] ^ T2[c >> 8 & 255] ^ T3[d & 255]) << 96
        | (T0[b >> 24] ^ T1[c >> 16 & 255] ^ T2[d >> 8 & 255] ^ T3[a & 255]) << 64
        | (T0[c >> 24] ^ T1[d >> 16 & 255] ^ T2[a >> 8 & 255] ^ T3[b & 255]) << 32
        | (T0[d >> 24] ^ T1[a >> 16 & 255] ^ T2[b >> 8 & 255] ^ T3[c & 255])
    ) ^ key


class Aegis256X4:
    LANES, BLOCK = 4, 64
    C0 = 0x000101020305080D1522375990E97962
    C1 = 0xDB3D18556DC22FF12011314273B528DD

    def __init__(self, key):
        self.key = key

    def start(self, nonce):
        k0, k1 = (int.from_bytes(self.key[i : i + 16], "big") for i in (0, 16))
        n0, n1 = (int.from_bytes(nonce[i : i + 16], "big") for i in (0, 16))
        first = (k0 ^ n0, k1 ^ n1, self.C1, self.C0, k0 ^ self.C0, k1 ^ self.C1)
        self.lanes = [list(first) for _ in range(self.LANES)]
        context = [(i << 8 | self.LANES - 1) << 112 for i in range(self.LANES)]
        for _ in range(4):
            for word in (k0, k1, k0 ^ n0, k1 ^ n1):
                for lane, number in zip(self.lanes, context):
                    lane[3] ^= number
                    lane[5] ^= number
                self.update([word] * self.LANES)

    def update(self, words):
        for lane, word in zip(self.lanes, words):
            a, b, c, d, e, f = lane
            lane[:] = (
                aes_round(f, a ^ word), aes_round(a, b), aes_round(b, c),
                aes_round(c, d), aes_round(d, e), aes_round(e, f),
            )

    @staticmethod
    def words(block):
        return [int.from_bytes(block[i : i + 16], "big") for i in range(0, len(block), 16)]

    def blocks(self, data):
        for at in range(0, len(data), self.BLOCK):
            yield data[at : at + self.BLOCK]

    def open(self, nonce, aad, cipher, tag):
        self.start(nonce)
        for block in self.blocks(aad):
            self.update(self.words(block.ljust(self.BLOCK, b"\0")))
        plain = b""
        for block in self.blocks(cipher):
            key = b"".join((b ^ e ^ f ^ c & d).to_bytes(16, "big") for _, b, c, d, e, f in self.lanes)
            part = xor(block, key[: len(block)])
            self.update(self.words(part.ljust(self.BLOCK, b"\0")))
            plain += part
        lengths = int.from_bytes(struct.pack("<2Q", 8 * len(aad), 8 * len(cipher)), "big")
        last = [lane[3] ^ lengths for lane in self.lanes]
        for _ in range(7):
            self.update(last)
        digest = 0
        for lane in self.lanes:
            for word in lane:
                digest ^= word
        return plain if hmac.compare_digest(digest.to_bytes(16, "big"), tag) else None


class Aegis:
    """Its nonce is all of the trailer before the tag, the key version included."""

    def __init__(self, key):
        self.cipher = Aegis256X4(key)

    def open(self, nonce, aad, cipher, tag):
        return self.cipher.open(aad[29:33] + nonce, aad, cipher, tag)


# ---- derivations ----


def hkdf(key, salt, info):
    root = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(root, info + b"\1", "sha256")


def argon2id(password, salt, iterations, memory_kib, lanes):
    """RFC 9106, version 0x13, 32 bytes of output."""

    def le32(*values):
        return struct.pack(f"<{len(values)}I", *values)

    def long_hash(data, length):
        data = le32(length) + data
        if length <= 64:
            return hashlib.blake2b(data, digest_size=length).digest()
        v = hashlib.blake2b(data).digest()
        out = v[:32]
        while length - len(out) > 64:
            v = hashlib.blake2b(v).digest()
            out += v[:32]
        return out + hashlib.blake2b(v, digest_size=length - len(out)).digest()

    low, full = 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF
    quarters = ((0, 4, 8, 12), (1, 5, 9, 13), (2, 6, 10, 14), (3, 7, 11, 15))
    quarters += ((0, 5, 10, 15), (1, 6, 11, 12), (2, 7, 8, 13), (3, 4, 9, 14))
    rows = [[16 * r + i for i in range(16)] for r in range(8)]
    columns = [[16 * r + 2 * c + i for r in range(8) for i in range(2)] for c in range(8)]

    def compress(x, y):
        r = [a ^ b for a, b in zip(x, y)]
        z = r[:]
        for places in rows + columns:
            v = [z[p] for p in places]
            for i, j, k, m in quarters:
                a, b, c, d = v[i], v[j], v[k], v[m]
                for first, second in ((32, 24), (16, 63)):
                    a = a + b + 2 * (a & low) * (b & low) & full
                    d ^= a
                    d = (d >> first | d << 64 - first) & full
                    c = c + d + 2 * (c & low) * (d & low) & full
                    b ^= c
                    b = (b >> second | b << 64 - second) & full
                v[i], v[j], v[k], v[m] = a, b, c, d
            for p, value in zip(places, v):
                z[p] = value
        return [a ^ b for a, b in zip(r, z)]

    h0 = hashlib.blake2b(
        le32(lanes, 32, memory_kib, iterations, 0x13, 2, len(password))
        + password + le32(len(salt)) + salt + le32(0) + le32(0)
    ).digest()
    segment = memory_kib // (4 * lanes)
    width = 4 * segment
    memory = [[None] * width for _ in range(lanes)]

    def words(data):
        return list(struct.unpack("<128Q", data))

    for lane in range(lanes):
        for i in range(2):
            memory[lane][i] = words(long_hash(h0 + le32(i, lane), 1024))
    zero = [0] * 128
    for turn in range(iterations):
        for part in range(4):
            for lane in range(lanes):
                independent, addresses = turn == 0 and part < 2, []
                count = 0
                for index in range(2 if turn == 0 and part == 0 else 0, segment):
                    at = part * segment + index
                    if independent:
                        if not addresses or index // 128 >= count:
                            count = index // 128 + 1
                            start = [turn, lane, part, lanes * width, iterations, 2, count] + [0] * 121
                            addresses = compress(zero, compress(zero, start))
                        j = addresses[index % 128]
                    else:
                        j = memory[lane][at - 1][0]
                    j1, j2 = j & low, j >> 32
                    other = lane if turn == 0 and part == 0 else j2 % lanes
                    if turn == 0:
                        area = part * segment + (index - 1 if other == lane else -(index == 0))
                        begin = 0
                    else:
                        area = width - segment + (index - 1 if other == lane else -(index == 0))
                        begin = (part + 1) * segment % width
                    back = area * (j1 * j1 >> 32) >> 32
                    source = memory[other][(begin + area - 1 - back) % width]
                    made = compress(memory[lane][at - 1], source)
                    if turn:
                        made = [a ^ b for a, b in zip(made, memory[lane][at])]
                    memory[lane][at] = made
    final = [0] * 128
    for lane in range(lanes):
        final = [a ^ b for a, b in zip(final, memory[lane][-1])]
    return long_hash(struct.pack("<128Q", *final), 32)


# ---- protector keys ----


def read_keystore(path, passphrase):
    """The keys of a keystore, by name and version."""
    with open(path, "rb") as file:
        text = file.read()
    store = json.loads(text)
    body = text[: text.rindex(b',\n  "sha256"')]
    if hashlib.sha256(body).hexdigest() != store["sha256"]:
        raise Refused("the keystore is damaged")
    open_key = lambda name, version, blob: blob
    if "passphrase" in store:
        params = store["passphrase"]
        salt = base64.b64decode(params["salt"])
        root = argon2id(passphrase, salt, params["iterations"], params["memory_kib"], params["lanes"])
        subkey = lambda what: hkdf(root, salt, b"sqlite-tde v1 keystore " + what)
        if subkey(b"check") != base64.b64decode(params["check"]):
            raise Refused("the passphrase of the keystore is another one")
        signed = body[: body.rindex(b',\n  "hmac_sha256"')]
        if hmac.new(subkey(b"mac"), signed, "sha256").hexdigest() != store["hmac_sha256"]:
            raise Refused("the keystore is not authentic")

        def open_key(name, version, blob):
            aad = b"sqlite-tde v1 keystore key" + bytes([len(name)]) + name.encode() + struct.pack(">I", version)
            return Xaes(subkey(b"seal")).open(blob[:24], aad, blob[24:56], blob[56:])

    return {
        (key["name"], version["version"]): open_key(key["name"], version["version"], base64.b64decode(version["key"]))
        for key in store["keys"]
        for version in key["versions"]
    }


def read_raw(path):
    with open(path, "rb") as file:
        data = file.read()
    if len(data) == 32:
        return data
    text = data[:-1] if data.endswith(b"\n") else data
    text = text[:-1] if text.endswith(b"\r") else text
    return bytes.fromhex(text.decode()) if len(text) == 64 else base64.b64decode(text)


class Keys:
    def __init__(self, options):
        self.raw = read_raw(options.raw) if options.raw else None
        self.passphrase = options.passphrase and options.passphrase.encode()
        self.store = {}
        if options.keystore:
            self.store = read_keystore(options.keystore, (options.keystore_passphrase or "").encode())

    def unwrap(self, record, context):
        """The DEK, or None where there is no key for this record."""
        key_id, version, blob = record["key id"], record["key version"], record["wrapped"]

        def aad(number):
            return struct.pack(">I", len(context)) + context + struct.pack(">I", len(key_id)) + key_id + number

        def opened(key, number, blob, more=b""):
            return Xaes(key).open(blob[:24], aad(number) + more, blob[24:56], blob[56:72])

        if record["mechanism"] == b"argon2id+xaes-256-gcm" and self.passphrase is not None:
            form, lanes, iterations, memory = struct.unpack(">BBHI", blob[:8])
            if form == 1:
                key = argon2id(self.passphrase, blob[8:24], iterations, memory, lanes)
                return opened(key, struct.pack(">I", 1), blob[24:], blob[:24])
        if record["mechanism"] == b"xaes-256-gcm":
            if self.raw and version.decode() == hkdf(self.raw, b"", b"sqlite-tde v1 raw key check")[:4].hex():
                return opened(self.raw, bytes.fromhex(version.decode()), blob)
            name = (key_id.decode(), int(version)) if version.isdigit() else None
            if name in self.store:
                return opened(self.store[name], struct.pack(">I", name[1]), blob)
        return None


# ---- the envelope ----


class Reader:
    def __init__(self, data):
        self.data, self.at = data, 0

    def take(self, count):
        part = self.data[self.at : self.at + count]
        if len(part) < count:
            raise Refused("the envelope is too short")
        self.at += count
        return part

    def number(self, count):
        return int.from_bytes(self.take(count), "big")

    def sized(self, count):
        return self.take(self.number(count))


def parse_copy(data):
    if data[:16] != b"sqlite-tde file\0" or int.from_bytes(data[16:20], "big") != 1:
        return None
    length = int.from_bytes(data[20:24], "big")
    read = Reader(data[: length - 32])
    read.take(24)
    copy = {"generation": read.number(8), "file id": read.take(16), "page size": read.number(4)}
    read.take(24 + 1 + 3 + 4)
    deks, protectors, copy["flags"] = read.number(1), read.number(1), read.number(2) >> 8
    copy["deks"] = []
    for _ in range(deks):
        version, suite, _ = read.number(4), read.number(1), read.take(1)
        copy["deks"].append({"version": version, "suite": suite, "wrapped": read.sized(2)})
    copy["protectors"] = []
    for _ in range(protectors):
        record = {"name": read.sized(1), "provider": read.sized(1), "key id": read.sized(2)}
        record["key version"], record["mechanism"] = read.sized(2), read.sized(1)
        read.take(8 + 1)
        record["wrapped"] = read.sized(2)
        copy["protectors"].append(record)
    if read.at != length - 32:
        raise Refused("the envelope has more than its records")
    copy["signed"], copy["mac"] = data[: length - 32], data[length - 32 : length]
    return copy


def open_envelope(data, keys):
    copies = [parse_copy(data[at : at + COPY]) for at in (0, COPY)]
    for copy in sorted(filter(None, copies), key=lambda copy: -copy["generation"]):
        dek = copy["deks"][0]
        context = b"sqlite-tde v1 dek wrap" + copy["file id"] + struct.pack(">I", dek["version"])
        for record in copy["protectors"]:
            key = keys.unwrap(record, context)
            if key is None or hkdf(key, b"", b"sqlite-tde v1 file id")[:16] != copy["file id"]:
                continue
            mac_key = hkdf(key, copy["file id"], b"sqlite-tde v1 envelope")
            if hmac.compare_digest(hmac.digest(mac_key, copy["signed"], "sha256"), copy["mac"]):
                return copy, key
    raise Refused("no key opens the envelope")


# ---- sealed blocks ----


class Cipher:
    def __init__(self, copy, dek, purpose, label):
        self.file_id, self.purpose = copy["file id"], purpose
        self.version, suite = copy["deks"][0]["version"], copy["deks"][0]["suite"]
        subkey = hkdf(dek, self.file_id, label)
        self.suite = {1: Xaes, 2: CtrHmac, 3: Aegis}[suite](subkey)
        self.nonce, self.tag = {1: (24, 16), 2: (16, 28), 3: (28, 16)}[suite]

    def open(self, number, block, log=b""):
        """The plaintext, or None."""
        if len(block) <= RESERVE:
            return None
        cipher, trailer = block[:-RESERVE], block[-RESERVE:]
        tag_at = 4 + self.nonce
        if trailer[:4] != struct.pack(">I", self.version) or any(trailer[tag_at + self.tag :]):
            return None
        aad = self.file_id + struct.pack(">BQII", self.purpose, number, len(block), self.version) + log
        return self.suite.open(trailer[4:tag_at], aad, cipher, trailer[tag_at : tag_at + self.tag])


# ---- the files ----


def pages_of(data, copy, dek):
    """Each page's plaintext, None where it fails."""
    size = copy["page size"]
    cipher = Cipher(copy, dek, 1, b"sqlite-tde v1 page")
    pages = []
    while True:
        at = len(pages) * size
        place = at + PAGES_AT + (GAP if at >= GAP_AT else 0)
        block = data[place : place + size]
        if len(block) < size:
            return pages
        if at <= LOCKS_AT < at + size:
            pages.append(bytes(size))
            continue
        body = cipher.open(len(pages) + 1, block)
        pages.append(None if body is None else body + bytes(RESERVE))


def journal_of(data, copy, dek, page_1):
    """SQLite's journal; nothing where there is none of this database."""
    magic, form, version, salt = data[:16], data[16:20], data[20:24], data[24:40]
    if magic != b"\0sqlite-tde jrnl" or form != b"\0\0\0\1" or data[40:56] != copy["file id"]:
        return b""
    grain, state = int.from_bytes(data[56:60], "big"), data[60:80]
    sector = max(grain, 512)
    stride = -(-(sector + RESERVE) // grain) * grain
    if int.from_bytes(version, "big") != copy["deks"][0]["version"]:
        return b""
    fixed, name = data[-16:], b""
    length = int.from_bytes(fixed[:4], "big")
    if fixed[8:] == SQLITE_MAGIC and 1 <= length <= 131072 and length + 16 <= len(data) - 512:
        name = data[-16 - length :]
    body = len(data) - len(name) - sector
    whole, rest = divmod(max(body, 0), stride)
    if whole == 0:
        return b""
    size = whole * sector if rest == 0 else (whole - 1) * sector + min(rest, sector)
    cipher = Cipher(copy, dek, 3, b"sqlite-tde v1 journal" + salt + state)
    journal = b""
    for number in range(-(-size // sector)):
        at = sector + number * stride
        record = cipher.open(number, data[at : at + sector + RESERVE])
        if record is None:
            break
        journal += record
    journal = journal[:size]
    kind, counter = int.from_bytes(state[:4], "big"), int.from_bytes(state[4:8], "big")
    now = int.from_bytes(page_1[24:28], "big") if page_1 and page_1[:16] == b"SQLite format 3\0" else None
    fits = [counter, (counter + 1) & 0xFFFFFFFF] + ([0] if kind == 1 else [])
    if kind and now is not None and now not in fits and journal[:8] == SQLITE_MAGIC:
        raise Refused("the journal is of another state of the database")
    inner = journal[-16:]
    if inner[8:] == SQLITE_MAGIC:
        inner = journal[-16 - int.from_bytes(inner[:4], "big") :]
        if inner != name:
            journal = journal[: -len(inner)]
    return journal


def log_of(data, copy, dek):
    """SQLite's log; nothing where there is none of this database."""
    size, grain = (int.from_bytes(data[at : at + 4], "big") for at in (20, 24))
    if data[:16] != b"sqlite-tde wal\0\0" or data[16:20] != b"\0\0\0\1" or data[28:44] != copy["file id"]:
        return b""
    log, sector = data[44:60], max(grain, 512)
    record = 24 + size + RESERVE
    stride = -(-record // grain) * grain
    cipher = Cipher(copy, dek, 2, b"sqlite-tde v1 wal")
    first = cipher.open(grain << 32 | size, data[sector : sector + RECORD_0 + RESERVE], log)
    if first is None:
        return b""
    frames, number = [first[:32]], 1
    while True:
        at = 2 * sector + (number - 1) * stride
        frame = cipher.open(number, data[at : at + record], log)
        if frame is None:
            return b"".join(frames)
        frames.append(frame)
        number += 1


def read_file(path):
    if not os.path.exists(path):
        return b""
    with open(path, "rb") as file:
        return file.read()


def main():
    parser = argparse.ArgumentParser()
    for name in ("database", "out"):
        parser.add_argument(name)
    for name in ("--raw", "--passphrase", "--keystore", "--keystore-passphrase"):
        parser.add_argument(name)
    options = parser.parse_args()
    data = read_file(options.database)
    copy, dek = open_envelope(data, Keys(options))
    pages = pages_of(data, copy, dek)
    if pages and pages[0]:
        told = int.from_bytes(pages[0][16:18], "big")
        if (65536 if told == 1 else told) != copy["page size"] or pages[0][20] != RESERVE:
            raise Refused("page 1 and the envelope have different page sizes")
    journal = journal_of(read_file(options.database + "-journal"), copy, dek, pages[0] if pages else None)
    log = log_of(read_file(options.database + "-tdewal"), copy, dek)
    failed = [number for number, page in enumerate(pages, 1) if page is None]
    if failed and not journal and not log:
        raise Refused(f"pages fail: {failed}")
    with open(options.out, "wb") as file:
        file.write(b"".join(page or bytes(copy["page size"]) for page in pages))
    for suffix, content in (("-journal", journal), ("-wal", log)):
        if content:
            with open(options.out + suffix, "wb") as file:
                file.write(content)
    print(f"{len(pages)} pages, {len(journal)} bytes of a journal, {len(log)} bytes of a log")


if __name__ == "__main__":
    try:
        main()
    except Refused as error:
        sys.exit(f"refused: {error}")
