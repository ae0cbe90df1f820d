# shellcheck shell=sh disable=SC2034,SC2154
# What serial_protocol.py teaches a guest's shell. POSIX sh, run by ash, dash and bash. Before it, the loader
# has set _kl_t (the session's token), _kl_h (bytes of a head) and _kl_u (bytes of a unit of a block).
# All names begin with _kl to meet nobody's.
_kl_n='' _kl_s='' _kl_c='' _kl_k=''

for _kl_d in "${TMPDIR:-/tmp}" /tmp /run /dev/shm; do
  _kl_d=$_kl_d/.kvmlab-$_kl_t
  mkdir -m 700 "$_kl_d" 2>/dev/null && break
  _kl_d=
done

_kl_p() { printf '\n:%s:%s:\n' "$_kl_t" "$1"; }

_kl_a() {
  [ "$2" != 0 ] || _kl_c=
  [ ${#_kl_c} != "$2" ] || _kl_c=$_kl_c$3
}

_kl_r() {
  if [ "$1" != "$_kl_n" ]; then
    [ "$3" = + ] || _kl_c=$3
    [ ${#_kl_c} = "$2" ] || { _kl_p "l:$1"; return; }
    _kl_n=$1 _kl_s=
    case $_kl_c in *\\*) _kl_c=$(printf '%b.' "$_kl_c"); _kl_c=${_kl_c%.} ;; esac
    # In a subshell, or dash and ash would print "Killed" into the file too.
    case $_kl_x$_kl_v in
      :r) (exec "${SHELL:-/bin/sh}" -c "$_kl_c" </dev/null >|"$_kl_d/$1" 2>&1) ;;
      *) (eval "$_kl_c" </dev/null >|"$_kl_d/$1" 2>&1) ;;
    esac
    _kl_s=$?
  fi
  _kl_g "$1"
}

_kl_g() {
  _kl_k=
  [ ! -s "$_kl_d/$1" ] || _kl_k=$(od -An -v -tx1 -N "$_kl_h" "$_kl_d/$1")
  _kl_p "h:$1:$_kl_s:${#_kl_k}:$_kl_k"
}

_kl_b() {
  _kl_p "b:$1:$2:$3"
  dd if="$_kl_d/$1" bs="$_kl_u" skip="$2" count="$3" 2>/dev/null | gzip -c | base64
  _kl_p "e:$1:$2:$3"
}

_kl_serve() {
  _kl_p serve
  while IFS=' ' read -r _kl_x _kl_v _kl_i _kl_l _kl_q; do
    _kl_q=${_kl_q#\'}
    _kl_q=${_kl_q%\'}
    case $_kl_x$_kl_v in
      :[re]) _kl_r "$_kl_i" "$_kl_l" "$_kl_q" ;;
      :a) _kl_a "$_kl_i" "$_kl_l" "$_kl_q" ;;
      :g) _kl_g "$_kl_i" ;;
      :b) _kl_b "$_kl_i" "$_kl_l" "$_kl_q" ;;
      :p) _kl_p "p:$_kl_i:$_kl_n" ;;
      :x) rm -f "$_kl_d"/* ;;
      :q) break ;;
    esac
  done
  _kl_p bye
}

for _kl_x in od dd gzip base64; do
  command -v "$_kl_x" >/dev/null || _kl_k=$_kl_k$_kl_x:
done
[ -n "$_kl_d" ] || _kl_k=${_kl_k}folder:
_kl_p "${_kl_k:-ready}"
