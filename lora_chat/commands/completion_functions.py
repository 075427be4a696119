"""Shell functions that list recipes, runs, parcels and settings, for the scripts of `lora-chat completion`."""

from collections.abc import Sequence

RECIPE, RUN, THING, PARCEL, FILE, FOLDER, SETTING = "recipe", "run", "thing", "parcel", "file", "folder", "setting"
_LISTS = (RECIPE, RUN, THING, PARCEL, FILE, FOLDER, SETTING)
_BASH = r"""
# $1: the word at the cursor as it is typed, with backslashes or an open quotation mark
_lora_chat_word() { REPLY="${1#[\"\']}"; REPLY="${REPLY//\\/}"; }
_lora_chat_file_file() { _lora_chat_word "$1"; compgen -f -- "$REPLY"; }
_lora_chat_file_folder() { _lora_chat_word "$1"; compgen -d -- "$REPLY"; }
_lora_chat_file_parcel() { _lora_chat_word "$1"; compgen -f -X '!*.lorachat' -- "$REPLY"; compgen -d -- "$REPLY"; }
_lora_chat_file_thing() { _lora_chat_file_parcel "$1"; _lora_chat_runs; }
_lora_chat_file_run() { _lora_chat_file_folder "$1"; _lora_chat_runs; }
_lora_chat_file_recipe() {
  _lora_chat_word "$1"
  compgen -W '@RECIPES@' -- "$REPLY"
  compgen -f -X '!*.yaml' -- "$REPLY"
  compgen -f -X '!*.yml' -- "$REPLY"
  compgen -d -- "$REPLY"
}
# The runs of the folder `runs`, if nothing else is typed yet
_lora_chat_runs() {
  local plan
  [ -z "$REPLY" ] || return 0
  for plan in runs/*/plan.json; do [ -e "$plan" ] && printf '%s\n' "${plan%/plan.json}"; done
}
_lora_chat_setting() { compgen -W '@SETTINGS@' -- "$1"; }
"""
_BASH_END = r"""
_lora_chat_complete() {
  _shtab_lora_chat
  [[ ${#COMPREPLY[@]} = 1 && ${COMPREPLY[0]} == *= ]] && compopt -o nospace 2>/dev/null
  return 0
}
complete -o bashdefault -F _lora_chat_complete lora-chat
"""
_ZSH = r"""
_lora_chat_file() { _files }
_lora_chat_folder() { _files -/ }
_lora_chat_parcel() { _files -g '*.lorachat(-.)' }
_lora_chat_runs() {
  local -a runs
  [[ -z $PREFIX ]] || return 1
  runs=(runs/*/plan.json(N:h))
  (( $#runs )) && compadd -f -- $runs
}
_lora_chat_run() { _lora_chat_runs; _files -/ }
_lora_chat_thing() { _lora_chat_runs; _files -g '*.lorachat(-.)' }
_lora_chat_recipe() { compadd -- @RECIPES@; _files -g '*.(yaml|yml)(-.)' }
_lora_chat_setting() { compadd -S '' -- @SETTINGS@ }
"""
_FISH = r"""
function _lora_chat_file; __fish_complete_path (commandline -ct); end
function _lora_chat_folder; __fish_complete_directories; end
function _lora_chat_suffix
  __fish_complete_directories
  for path in (__fish_complete_path (commandline -ct))
    string match -q -r "\.($argv[1])(\t|\$)" -- $path; and printf '%s\n' $path
  end
end
function _lora_chat_runs
  set -l word (commandline -ct)
  if test -z "$word"
    for plan in runs/*/plan.json; dirname -- $plan; end
  end
end
function _lora_chat_run; _lora_chat_runs; __fish_complete_directories; end
function _lora_chat_parcel; _lora_chat_suffix lorachat; end
function _lora_chat_thing; _lora_chat_runs; _lora_chat_suffix lorachat; end
function _lora_chat_recipe; printf '%s\n' @RECIPES@; _lora_chat_suffix 'yaml|yml'; end
function _lora_chat_setting; printf '%s\n' @SETTINGS@; end
"""
_PREAMBLES = {"bash": _BASH, "zsh": _ZSH, "fish": _FISH}
SHELLS = tuple(_PREAMBLES)


def find_function(kind: str) -> dict[str, str]:
    """Return the function that lists a kind of values in each shell, as shtab expects it.

    In bash, shtab quotes the names of files if a function has `_file` in its name.
    """
    bash = f"_lora_chat_{kind}" if kind == SETTING else f"_lora_chat_file_{kind}"
    return {"bash": bash, "zsh": f"_lora_chat_{kind}", "fish": f"(_lora_chat_{kind})"}


def write_functions(shell: str, recipes: Sequence[str], settings: Sequence[str]) -> str:
    """Return the functions for a shell. Recipes and settings are names without special characters."""
    text = _PREAMBLES[shell].replace("@RECIPES@", " ".join(recipes))
    return text.replace("@SETTINGS@", " ".join(settings)).strip()


def write_end(shell: str) -> str:
    """Return the lines after the script: in bash, the completion of a setting adds no space after `=`."""
    return _BASH_END if shell == "bash" else ""
