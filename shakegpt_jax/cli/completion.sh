# Completes the commands and options of shakegpt, as its --help lists them, in bash and zsh.
if [ -n "${ZSH_VERSION-}" ]; then
  autoload -Uz compinit bashcompinit
  type compdef >/dev/null || compinit
  bashcompinit
fi
_shakegpt() {
  local word="${COMP_WORDS[COMP_CWORD]}" found=""
  if [ "$COMP_CWORD" = 1 ]; then
    found=$(shakegpt --help 2>/dev/null | sed -n 's/^  \([a-z_]*\) .*/\1/p')
  elif [ "${COMP_WORDS[COMP_CWORD-1]}" = --config ]; then
    found=$(COLUMNS=200 shakegpt "${COMP_WORDS[1]}" --help 2>/dev/null | sed -n '/--config CONFIG/{s/.*CONFIG//;s/ or .*//;s/,//g;p;}')
  elif [ "${word#-}" != "$word" ]; then
    found=$(shakegpt "${COMP_WORDS[1]}" --help 2>/dev/null | sed -n 's/^ *\(-h, \)*\(--[a-z0-9_.]*\).*/\2/p')
  fi
  COMPREPLY=($(compgen -W "$found" -- "$word")) # if it is empty: file names
}
complete -o default -F _shakegpt shakegpt
