# shellcheck shell=sh
# Functions for the scripts that install Python packages.

# Install packages into a venv, with uv if it is installed, otherwise with pip.
# Usage: pip_install VENV ARGUMENT...
# The venv is created if it does not exist. The arguments are those of "pip install".
pip_install() {
    venv=$1
    shift
    [ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
    if command -v uv >/dev/null; then
        uv pip install --quiet --python "$venv/bin/python" "$@"
    else
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$@"
    fi
}

# Install a requirements file into a venv of its own, unless the venv already has the same requirements.
# Usage: install_once VENV REQUIREMENTS
install_once() {
    if ! cmp -s "$2" "$1/requirements.txt"; then
        rm -rf "$1"
        echo "$0: installing $2 into $1" >&2
        .venv/bin/python -m venv "$1"
        pip_install "$1" --compile --require-hashes --requirement "$2"
        cp "$2" "$1/requirements.txt"
    fi
}
