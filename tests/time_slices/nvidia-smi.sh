#!/bin/sh
# Stands in for nvidia-smi: keeps a length for each GPU in a file beside it, and answers to compute-policy as the one of
# driver 550 does. `fails` beside it is what it says instead, with status 3; with `hangs` it says nothing.
here=${0%/*}
echo "$*" >>"$here/calls"
if [ -e "$here/hangs" ]; then echo $$ >"$here/pid"; exec sleep 1000; fi
if [ -e "$here/fails" ]; then cat "$here/fails"; exit 3; fi
[ "$1 $2" = "compute-policy -i" ] || exit 2
length=$here/$3
case $4 in
--list)
  echo "+-------------------------------------+"
  echo "| GPU compute policies:               |"
  echo "| GPU     Name           Value        |"
  echo "|=====================================|"
  printf '|   0     timeslice      %-12s |\n' "$(cat "$length" 2>/dev/null || echo Default)"
  echo "+-------------------------------------+"
  ;;
--set-timeslice)
  case $5 in 0) value=Default ;; 1) value=Short ;; 2) value=Medium ;; 3) value=Long ;; *) exit 2 ;; esac
  echo "$value" >"$length"
  echo "Successfully set timeslice policy with value $value for GPU 0"
  ;;
*) exit 2 ;;
esac
