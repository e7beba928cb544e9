"""Certificates for a test's broker and its clients, made by openssl: an authority of the test's own, what it has signed,
and what it has not. All are PEM files in one folder."""

import subprocess

DAYS = 2


def _openssl(*arguments):
    done = subprocess.run(["openssl", *map(str, arguments)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def authority(folder, name):
    """NAME.pem, which signs others, and NAME.key."""
    _openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", DAYS, "-subj",
             f"/CN={name}", "-addext", "keyUsage=critical,keyCertSign", "-keyout", folder / f"{name}.key", "-out",
             folder / f"{name}.pem")


def certificate(folder, name, by="ca", days=DAYS, names="IP:127.0.0.1", password=None):
    """NAME.key, encrypted where there is a password, and NAME.pem: the key as it is, and its certificate. Of fewer than 0
    days: it has ended."""
    key, request, signed, extensions = (folder / f"{name}.{end}" for end in ("key", "csr", "crt", "ext"))
    _openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", f"/CN={name}", "-keyout",
             key, "-out", request)
    extensions.write_text(f"subjectAltName={names}\n")
    _openssl("x509", "-req", "-in", request, "-CA", folder / f"{by}.pem", "-CAkey", folder / f"{by}.key", "-CAcreateserial",
             "-days", days, "-extfile", extensions, "-out", signed)
    (folder / f"{name}.pem").write_text(key.read_text() + signed.read_text())
    if password:
        _openssl("pkcs8", "-topk8", "-in", key, "-passout", f"pass:{password}", "-out", folder / "encrypted.key")
        (folder / "encrypted.key").rename(key)
