# Sourced by the other scripts: the virtual environment that they share.

# make_environment SPEC: .venv with the project installed as SPEC ("." or ".[test]"), in place so that edits count.
# What was installed is remembered: a second call with nothing new to install returns at once.
make_environment() {
    local spec=$1 python wanted
    python=${PYTHON:-python3}
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        echo "needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.11" >&2
        return 1
    fi
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    wanted="$spec $(cksum < pyproject.toml)"
    if ! grep -qsxF "$wanted" .venv/installed; then
        echo "installing ddpm-cli into .venv (PyTorch is large: this takes minutes)"
        .venv/bin/python -m pip install -qq --disable-pip-version-check --editable "$spec"
        echo "$wanted" >> .venv/installed
    fi
}
