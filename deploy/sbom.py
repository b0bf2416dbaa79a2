"""Adds the distribution's packages to a CycloneDX list of Python packages, for the image.

JSON on standard input and output; the argument is the folder of dpkg's database (/var/lib/dpkg).
"""

import json
import platform
import subprocess
import sys
from urllib.parse import quote

sbom = json.load(sys.stdin)
(ours,) = (component for component in sbom["components"] if component["name"] == "mlip-pace")
sbom["components"].remove(ours)
sbom["metadata"]["component"] = {**ours, "type": "application"}
query = ["dpkg-query", f"--admindir={sys.argv[1]}", "--show", "--showformat=${Package}\t${Version}\t${Architecture}\n"]
distribution = platform.freedesktop_os_release()["ID"]
for line in subprocess.check_output(query, text=True).splitlines():
    name, version, architecture = line.split("\t")
    purl = f"pkg:deb/{distribution}/{quote(name)}@{quote(version)}?arch={architecture}"
    sbom["components"].append({"type": "library", "bom-ref": purl, "name": name, "version": version, "purl": purl})
json.dump(sbom, sys.stdout, indent=1)
