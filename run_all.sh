#!/usr/bin/env bash
# Sets up the environment where there is none, executes the notebooks and prints the table "paper against reproduced".
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"

usage() {
    cat <<'END'
usage: ./run_all.sh [quick | full | smoke | test [pytest arguments] | --help]

  quick   small runs of every notebook: seventeen minutes on two cores (the default)
  full    the paper's sizes: three hours on two cores
  smoke   the smallest runs that still use every part; their numbers mean nothing
  test    lint, types and all tests; further words go to pytest: with -m "not slow" it takes about three minutes

Finished work is skipped. Ctrl-C loses only the run in flight: the same command continues from there.

  SLOS_VENV     folder of the environment (.venv; in the active conda environment slos-serve, that one)
  SLOS_EXTRA    vLLM, the real engine: gpu, cpu, or none (gpu if nvidia-smi finds one, cpu on other Linux machines)
  SLOS_PYTHON   Python to create it with (the first of python3, python3.11, 3.12, 3.13 that is 3.11 to 3.13)
  SLOS_DATA     folder with the real traces (without it, those that were downloaded, or else synthetic ones)
  SLOS_CACHE    folder of downloads (~/.cache/slos-serve)
  SLOS_RESULTS  folder of the results (results)
  RAY_ADDRESS   Ray cluster for the simulations (without it, the cores of this machine)
END
}
say() { echo "run_all: $*"; }
refuse() { echo "run_all: $*" >&2; exit 2; }
fits() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' >/dev/null 2>&1; }

what=${1-quick}
shift $(($# > 0))
case $what in
    -h | --help) usage; exit 0 ;;
    test) ;;
    quick | full | smoke) (($# == 0)) || refuse "'$what' takes no further words, got '$*'" ;;
    *) refuse "unknown word '$what'; known: quick, full, smoke, test, --help" ;;
esac
extra=${SLOS_EXTRA:-}
if [[ -z $extra ]]; then
    extra=none
    if nvidia-smi -L >/dev/null 2>&1; then extra=gpu; elif [[ $(uname -s) == Linux ]]; then extra=cpu; fi
fi
case $extra in
    none) lock=requirements.txt ;;
    cpu | gpu) lock=requirements-$extra.txt ;;
    *) refuse "SLOS_EXTRA = '$SLOS_EXTRA' is unknown; known: cpu, gpu, none, or leave it unset" ;;
esac

venv=${SLOS_VENV:-.venv} install=(pip sync "$lock")
if [[ -z ${SLOS_VENV:-} && ${CONDA_DEFAULT_ENV:-} == slos-serve && -n ${CONDA_PREFIX:-} ]]; then
    venv=$CONDA_PREFIX install=(pip install -r "$lock") # sync would take out what conda put in
fi
if [[ -x $venv/bin/python ]]; then
    fits "$venv/bin/python" || refuse "the Python in $venv must be 3.11 to 3.13; remove that folder, or set SLOS_VENV"
fi
stamp() { "$venv/bin/python" -VV && pwd && cat "$lock"; }

if [[ ! -x $venv/bin/python || $(stamp) != "$(cat "$venv/.slos-stamp" 2>/dev/null)" ]]; then
    say "setting up $venv from $lock (once; a minute or two)"
    for python in ${SLOS_PYTHON:-python3 python3.11 python3.12 python3.13} ''; do
        if [[ -n $python ]] && fits "$python"; then break; fi
    done
    [[ -n $python ]] || refuse "needs Python 3.11 to 3.13 and found none; install one, or name it in SLOS_PYTHON"
    uv=uv
    if ! uv --version >/dev/null 2>&1; then
        uv=.boot/bin/uv
        if ! "$uv" --version >/dev/null 2>&1; then
            "$python" -m venv --clear .boot
            .boot/bin/python -m pip install -qq 'uv>=0.7'
            say "fetched the installer uv ($SECONDS s)"
        fi
    fi
    # uv does not read pip's settings: hand its folders of local packages on. They then hold the CPU build of torch, too.
    links=${UV_FIND_LINKS:-${PIP_FIND_LINKS:-$("$python" -m pip config get global.find-links 2>/dev/null || true)}}
    if [[ -n $links ]]; then
        export UV_FIND_LINKS=$links
    elif [[ $lock == requirements-cpu.txt ]]; then
        install+=(--torch-backend cpu)
    fi
    [[ -t 2 ]] || install+=(-q)
    rm -f "$venv/.slos-stamp" # an install that is cut short is done again
    [[ -x $venv/bin/python ]] || "$uv" venv -q --allow-existing --python "$python" "$venv"
    if [[ ${install[1]} == install && $extra == cpu ]]; then # environment.yml put the GPU's vllm in; theirs is one module
        "$uv" pip uninstall -q --python "$venv/bin/python" vllm
    fi
    say "installing $(grep -c == "$lock") packages"
    "$uv" "${install[@]}" --compile-bytecode --python "$venv/bin/python"
    "$uv" pip install -q --no-deps --python "$venv/bin/python" -e .
    if [[ $extra != none ]] && ! why=$("$venv/bin/python" -c 'import torch, vllm' 2>&1); then
        refuse "vLLM does not import (${why##*$'\n'}); set SLOS_EXTRA=none to leave it out, or SLOS_PYTHON to a Python for which" \
            "there are wheels of torch for this machine (a folder of local wheels may lack them: unset PIP_FIND_LINKS)"
    fi
    stamp >"$venv/.slos-stamp"
    say "$venv is ready ($SECONDS s)"
fi

PATH=$(cd "$venv/bin" && pwd):$PATH
export PATH
if [[ $what == test ]]; then
    ruff check .
    ruff format --check .
    PYRIGHT_PYTHON_IGNORE_WARNINGS=1 pyright --pythonpath "$(command -v python)"
    exec python -m pytest -q -n 2 --dist loadgroup "$@"
fi
exec python -m slos.reproduce "$what"
