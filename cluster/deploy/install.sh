#!/usr/bin/env bash
# Makes an environment that can be a node of an inlay cluster: the exact versions of requirements.lock, inlay itself, the
# library for workspaces on S3. The Dockerfile runs it, a test runs the same line, and on a plain machine it does too.
#
#   install.sh PYTHON SOURCE USER
#
# PYTHON: the interpreter to install for. SOURCE: a checkout of inlay. USER: the account that will run Ray; it and missing
# tools are added by root on Debian, elsewhere they must be there. pip's own variables, such as PIP_EXTRA_INDEX_URL for
# torch without CUDA, apply.
set -euo pipefail
python=$1 source=$2 user=$3

# KubeRay's health probes call wget; Triton compiles its launchers with gcc.
missing=()
command -v wget > /dev/null || missing+=(wget)
command -v gcc > /dev/null || missing+=(gcc libc6-dev)
if [ ${#missing[@]} -gt 0 ]; then
  apt-get update
  apt-get install --yes --no-install-recommends "${missing[@]}"
  rm -rf /var/lib/apt/lists/*
fi
id "$user" > /dev/null 2>&1 || useradd --create-home --uid 1000 "$user"

"$python" -m pip install --no-cache-dir --disable-pip-version-check \
  --requirement "$source/requirements.lock" --constraint "$source/requirements-dev.lock" "$source[s3]"
cd /
"$python" -m inlay.nas.cli --version
"$python" -c 'import ray, torch, inlay.nas.modeling; print("ray", ray.__version__, "torch", torch.__version__)'
