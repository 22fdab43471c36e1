"""llama.cpp's server, in a process that has no other work: FILE CONTEXT THREADS EXACT_ATTENTION (0 or 1).

It writes its address to stdout once the file is loaded and its log to stderr. It ends when its stdin does, so with its
parent, however that one ended. It imports only xllamacpp, to start at once.
"""

import os
import sys


def main() -> None:
    import xllamacpp

    file, context, threads, exact_attention = sys.argv[1], *map(int, sys.argv[2:])
    told = os.dup(1)
    os.dup2(2, 1)  # what llama.cpp prints is no address
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_ctx, params.n_parallel, params.port, params.n_gpu_layers = context, 1, 0, 0
    params.verbosity = 2  # errors and warnings: with less, it doesn't say why it can't load a file
    if exact_attention:
        params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    server = xllamacpp.Server(params)
    try:
        os.write(told, f"{server.listening_address}\n".encode())
        while os.read(0, 1024):
            pass
    finally:
        os._exit(0)  # deleting the server may wait for its loop for ever


if __name__ == "__main__":
    main()
