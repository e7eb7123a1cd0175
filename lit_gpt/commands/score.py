"""Score answers with a reward model."""

from typing import Literal


def score(
    model: str,
    files: list[str],
    out: str,
    columns: dict[str, str] | None = None,
    batch_size: int = 8,
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto",
    on_bad_input: Literal["error", "skip"] = "error",
) -> None:
    """Score the answers of instruction data with a reward model; a `reward` field is added to each row.

    Args:
        model: run or checkpoint of a RewardModule.
        files: JSON, JSON lines, CSV or Parquet files with instructions and answers, in any form that SFT accepts.
        out: JSON lines file to write: the input rows with `reward` and `source` (file and row) added.
        columns: maps a field's expected name to its name in the data: {"prompt": "question"}.
        batch_size: number of rows scored in a batch.
        device: device to run on; auto uses the accelerator if there is one.
        on_bad_input: how to treat a row that cannot be scored: error: stop and name it; skip: skip and count it.
    """
    import json

    from lit_gpt.atomic import atomic_file
    from lit_gpt.checks import check_at_least, local_path
    from lit_gpt.data.records import BadInput, FileRecords
    from lit_gpt.errors import UserError
    from lit_gpt.generation.scorer import load_scorer

    check_at_least("batch_size", batch_size, 1)
    target = local_path("out", out)
    scorer = load_scorer(model, device)
    bad_input = BadInput(on_bad_input)
    total, count = 0.0, 0
    with atomic_file(target) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for rows, rewards in scorer.rate_rows(FileRecords(files).records(bad_input), bad_input, columns, batch_size):
            for row, reward in zip(rows, rewards, strict=True):
                values = {**row.values, "reward": reward, "source": row.where}
                line = json.dumps(values, ensure_ascii=False, default=str)  # dates and decimals of parquet as text
                try:
                    line.encode()
                except UnicodeEncodeError:  # a lone surrogate in some field: keep it as an escape
                    line = json.dumps(values, default=str)
                file.write(line + "\n")
                total, count = total + reward, count + 1
        if not count:
            raise UserError(f"{', '.join(files)}: no row could be scored; check the files and --columns")
    skipped = f", {bad_input.num_skipped} skipped" if bad_input.num_skipped else ""
    print(f"{count:,} rows{skipped}, mean reward {total / count:.4f} -> {out}")
