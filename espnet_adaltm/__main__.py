"""``python -m espnet_adaltm``, the same as the program ``espnet-adaltm``."""

from espnet_adaltm.bin.main import main

if __name__ == "__main__":
    main()
