# shellcheck shell=bash
# Job commands (Kaldi's contract): [--option value]... [JOB=1:N] LOG COMMAND...
# Choose with cmd_backend=local|slurm in the environment, or set train_cmd, cuda_cmd and decode_cmd
# to your own cluster's queue.pl, pbs.pl, ...

case "${cmd_backend:=local}" in
    local)
        : "${train_cmd:=utils/run.pl}"
        : "${cuda_cmd:=utils/run.pl}"
        : "${decode_cmd:=utils/run.pl}"
        ;;
    slurm)
        _conf=conf/slurm.conf
        if [ ! -f "${_conf}" ]; then _conf=${ADALTM_ROOT}/conf/slurm.conf; fi
        : "${train_cmd:=utils/slurm.pl --config ${_conf}}"
        : "${cuda_cmd:=utils/slurm.pl --config ${_conf}}"
        : "${decode_cmd:=utils/slurm.pl --config ${_conf}}"
        unset _conf
        ;;
    *)
        echo "error: cmd_backend is local or slurm, not '${cmd_backend}'" >&2
        exit 1
        ;;
esac
export train_cmd cuda_cmd decode_cmd
