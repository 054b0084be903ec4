"""What a shell needs to complete `traind …`: verbs, their options, job ids, else file names.

All of it is made from the table of verbs. Ids are asked of the daemon, and without one there are
none: completing never says a word.
"""

from traind.cli.errors import UsageError
from traind.cli.verbs import GLOBAL, VERBS, Verb
from traind.options import Kind, Option

_IDS = "traind ls --me -a --limit 50 2>/dev/null | sed -nE 's/^([0-9]+)\\*? +{rest}$/{kept}/p'"


def script_for(shell: str) -> str:
    """The script to be read by a shell. **Raises** UsageError for one that is not known."""
    known = {"bash": _bash, "zsh": _zsh, "fish": _fish}
    if shell not in known:
        raise UsageError("write `traind completion bash`, or zsh, or fish")
    return known[shell]()


def _flags(option: Option) -> tuple[str, ...]:
    """The spellings of an option; those of a flag that may be turned off as well."""
    if option.kind is Kind.FLAG and "--no-" in option.help:
        return (*option.flags, *(f"--no-{f[2:]}" for f in option.flags if f.startswith("--")))
    return option.flags


def _shown(verb: Verb) -> tuple[Option, ...]:
    return tuple(option for option in verb.options if option.help)


def _bash() -> str:
    cases = []
    for name, verb in VERBS.items():
        flags = " ".join(flag for option in _shown(verb) for flag in _flags(option))
        valued = " ".join(flag for o in _shown(verb) if o.kind is not Kind.FLAG for flag in o.flags)
        takes = "ids" if verb.takes_ids else "own" if verb.own_words else " ".join(verb.choices)
        cases.append(f"        {name}) flags='{flags}' valued='{valued}' takes='{takes}' ;;")
    first = " ".join(flag for option in GLOBAL for flag in option.flags)
    valued = " ".join(f for o in GLOBAL if o.kind is not Kind.FLAG for f in o.flags)
    return _BASH.format(
        cases="\n".join(cases),
        verbs=" ".join(VERBS),
        first=first,
        valued=valued,
        ids=_IDS.format(rest=".*", kept=r"\1"),
    )


_BASH = r"""# traind's completion for bash: source <(traind completion bash)

_traind_verb() {{
    case $1 in
{cases}
        *) return 1 ;;
    esac
}}

_traind() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} verb='' flags='{first}' valued='{valued}' takes=''
    local word words=0 i=1
    COMPREPLY=()
    while ((i < COMP_CWORD)); do
        word=${{COMP_WORDS[i]}}
        case $word in
            --) [[ $takes == own ]] && return ;;
            =) ((i++)) ;;
            -*) [[ " $valued " == *" $word "* && ${{COMP_WORDS[i + 1]}} != = ]] && ((i++)) ;;
            *)
                if [[ -n $verb ]]; then
                    ((words++))
                else
                    verb=$word
                    _traind_verb "$verb" || return
                fi
                ;;
        esac
        ((i++))
    done
    ((i > COMP_CWORD)) && return
    [[ $cur == = || ${{COMP_WORDS[COMP_CWORD - 1]}} == = ]] && return
    [[ $takes == own && $words -gt 0 ]] && return
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$cur")
    elif [[ -z $verb ]]; then
        mapfile -t COMPREPLY < <(compgen -W '{verbs}' -- "$cur")
    elif [[ $takes == ids ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$({ids} || true)" -- "$cur")
    elif [[ $takes != own ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$takes" -- "$cur")
    fi
}}

complete -o default -F _traind traind
"""


def _zsh() -> str:
    verbs = "\n".join(f"        {_quoted(f'{n}:{v.summary}')}" for n, v in VERBS.items())
    cases = []
    for name, verb in VERBS.items():
        specs = [spec for option in _shown(verb) for spec in _zsh_specs(option)]
        if verb.takes_ids:
            specs.append("'*:job:_traind_ids'")
        elif verb.own_words:
            specs.append("'*::what is run:_files'")
        elif verb.choices:
            specs += [f"'1:word:({' '.join(verb.choices)})'", "'*:file:_files'"]
        else:
            specs.append("'*:file:_files'")
        cases.append(f"        {name}) _arguments -s {_lines(specs)} ;;")
    first = [spec for option in GLOBAL for spec in _zsh_specs(option)]
    return _ZSH.format(
        verbs=verbs,
        cases="\n".join(cases),
        first=_lines(first),
        ids=_IDS.format(rest=".*", kept=r"\1"),
    )


def _zsh_specs(option: Option) -> list[str]:
    """What `_arguments` is told of each spelling. **Source**: zshcompsys(1)."""
    meaning = option.help
    for character in "\\[]:":
        meaning = meaning.replace(character, "\\" + character)
    specs = []
    for flag in _flags(option):
        value, equals = "", ""
        if option.kind is not Kind.FLAG:
            value = f":{option.kind}:{'_files' if option.kind is Kind.PATH else ' '}"
            equals = "=" if flag.startswith("--") else "+"
        specs.append(_quoted(f"*{flag}{equals}[{meaning}]{value}"))
    return specs


def _lines(specs: list[str]) -> str:
    return " \\\n            ".join(["", *specs]).lstrip()


_ZSH = r"""#compdef traind
# traind's completion for zsh: source <(traind completion zsh), after compinit

_traind_ids() {{
    local -a ids
    ids=(${{(f)"$({ids} || true)"}})
    compadd -- $ids
}}

_traind() {{
    local curcontext="$curcontext" state line
    local -a verbs
    verbs=(
{verbs}
    )
    _arguments -C -s {first} \
            '1:verb:->verb' '*::word:->word' && return
    if [[ $state == verb ]]; then
        _describe verb verbs
        return
    fi
    case $words[1] in
{cases}
    esac
}}

if [[ $funcstack[1] == _traind ]]; then
    _traind "$@"
else
    compdef _traind traind
fi
"""


def _fish() -> str:
    lines = [_FISH.format(ids=_IDS.format(rest="(.*)", kept=r"\1\t\2"))]
    for name, verb in VERBS.items():
        lines.append(
            f"complete -c traind -n __fish_use_subcommand -f -a {name} -d {_quoted(verb.summary)}"
        )
    lines += [_fish_option(option, "__fish_use_subcommand") for option in GLOBAL]
    for name, verb in VERBS.items():
        seen = f"__fish_seen_subcommand_from {name}"
        lines += [_fish_option(option, seen) for option in _shown(verb)]
        if verb.takes_ids:
            lines.append(f"complete -c traind -n '{seen}' -f -a '(__traind_ids)'")
        elif verb.choices:
            lines.append(f"complete -c traind -n '{seen}' -f -a '{' '.join(verb.choices)}'")
    return "\n".join(lines)


def _fish_option(option: Option, condition: str) -> str:
    spellings = " ".join(
        f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in _flags(option)
    )
    value = {Kind.FLAG: "", Kind.PATH: " -r -F"}.get(option.kind, " -x")
    return (
        f"complete -c traind -n {_quoted(condition)} {spellings}{value} -d {_quoted(option.help)}"
    )


_FISH = r"""# traind's completion for fish: traind completion fish | source

function __traind_ids
    {ids}
end
"""


def _quoted(text: str) -> str:
    """The text in single quotes, as all three shells read it."""
    return "'" + text.replace("'", r"'\''") + "'"
