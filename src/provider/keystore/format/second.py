"""Makes second.json: a keystore of format 2 under a passphrase, by the words of mod.rs,
passphrase.rs and wrap.rs alone, with other people's software.

    pip install argon2-cffi cryptography
    python second.py second.json
"""

import base64
import hashlib
import hmac
import json
import sys

from argon2.low_level import Type, hash_secret_raw
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

PASSPHRASE = b"correct horse"
SALT = bytes(range(16))
COST = {"memory_kib": 8192, "iterations": 1, "lanes": 1}


def base64_text(data):
    return base64.b64encode(data).decode()


def aes(key, data):
    return Cipher(algorithms.AES(key), modes.ECB()).encryptor().update(data)


def xor(a, b):
    return bytes(x ^ y for x, y in zip(a, b))


def xaes_256_gcm(key, nonce, aad, plain):
    """https://c2sp.org/XAES-256-GCM"""
    block = aes(key, bytes(16))
    doubled = (int.from_bytes(block, "big") << 1) & ((1 << 128) - 1)
    k1 = (doubled ^ (0x87 if block[0] >> 7 else 0)).to_bytes(16, "big")
    halves = (b"\0" + bytes([n]) + b"X\0" + nonce[:12] for n in (1, 2))
    subkey = b"".join(aes(key, xor(half, k1)) for half in halves)
    return nonce + AESGCM(subkey).encrypt(nonce[12:], plain, aad)


derived = hash_secret_raw(
    PASSPHRASE, SALT, COST["iterations"], COST["memory_kib"], COST["lanes"], 32, Type.ID, 19
)


def subkey(purpose):
    label = b"sqlite-tde v1 keystore " + purpose
    return HKDF(hashes.SHA256(), 32, SALT, label).derive(derived)


def version(name, number, **rules):
    label = b"sqlite-tde v1 keystore key"
    aad = label + bytes([len(name)]) + name.encode() + number.to_bytes(4, "big")
    nonce = hashlib.sha256(aad).digest()[:24]
    blob = xaes_256_gcm(subkey(b"seal"), nonce, aad, bytes([number]) * 32)
    head = {"version": number, "created": 1700000000, "enabled": number == 1}
    return {**head, **rules, "key": base64_text(blob)}


limits = {"not_before": 1600000000, "not_after": 1900000000}
check = {"salt": base64_text(SALT), "check": base64_text(subkey(b"check"))}
store = {
    "format": 2,
    "passphrase": {"kdf": "argon2id", **COST, **check},
    "keys": [
        {
            "name": "default",
            "created": 1700000000,
            "versions": [version("default", 1), version("default", 2)],
        },
        {
            "name": "other",
            "created": 1700000000,
            "enabled": False,
            "operations": ["unwrap"],
            "purged_at": 1800000000,
            "versions": [version("other", 1, **limits), version("other", 2)],
        },
    ],
}

text = json.dumps(store, indent=2)[: -len("\n}")]
mac = hmac.new(subkey(b"mac"), text.encode(), "sha256").hexdigest()
text += f',\n  "hmac_sha256": "{mac}"'
digest = hashlib.sha256(text.encode()).hexdigest()
text += f',\n  "sha256": "{digest}"\n}}\n'
with open(sys.argv[1], "w", encoding="ascii") as file:
    file.write(text)
