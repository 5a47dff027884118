"""A model adapted to a family: who is trained on, what is held out, runs that are stopped, and bad input."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import carp_nb
from carp_nb.adaptation import (
    AdaptationStopped,
    AdaptConfig,
    FamilyBatches,
    FamilyRows,
    _make_task,
    adapt,
    read_card,
)
from carp_nb.alphabet import AMINO_ACIDS, PROTEIN
from carp_nb.batching import Corpus
from carp_nb.budgets import get_budget
from carp_nb.carp import CARP, TABLE_S1
from carp_nb.cli import app
from carp_nb.datasets import load_scan
from carp_nb.defaults import DEFAULT_MODEL
from carp_nb.embedding import embed
from carp_nb.errors import CarpError
from carp_nb.esm import ESM, TABLE_S2, ESMConfig
from carp_nb.finetune import FinetuneConfig, finetune
from carp_nb.layouts import save_checkpoint
from carp_nb.pretrain import PretrainConfig, pretrain
from carp_nb.pretrained import load_model
from carp_nb.readers import read_alignment
from carp_nb.relatives import hold_out, read_relatives, weigh_and_cluster
from carp_nb.results import notebook_parameters
from carp_nb.scorers import load_scorer
from carp_nb.scoring import mutation_scan, score_mutants

CONFIG = AdaptConfig(updates=8, every=4, lr=1e-2, batch_tokens=160, name="mine")


pytestmark = pytest.mark.usefixtures("one_thread")


def relatives(n: int = 60, length: int = 40, changed: float = 0.4) -> list[str]:
    "Sequences that each differ from a common ancestor, which is the first."
    rng = np.random.default_rng(1)
    ancestor = rng.integers(0, 20, length)
    rows = [ancestor]
    for _ in range(n - 1):
        rows.append(np.where(rng.random(length) < changed, rng.integers(0, 20, length), ancestor))
    return ["".join(AMINO_ACIDS[i] for i in row) for row in rows]


FAMILY = relatives()


def tiny(family: type = CARP) -> CARP | ESM:
    torch.manual_seed(0)
    if family is ESM:
        return ESM(TABLE_S2["esm_4_9k"], "tiny").eval()
    return CARP(TABLE_S1["carp_4k"], "tiny").eval()


def quiet(model=None, family=FAMILY, config=CONFIG, **given):
    return adapt(model or tiny(), family, config, progress=False, **given)


def same(a, b) -> bool:
    return all(torch.equal(value, b.state_dict()[key]) for key, value in a.state_dict().items())


def write_a3m(path: Path, rows: list[str]) -> Path:
    text = "".join(f">s{i}\n{row}\n" for i, row in enumerate(rows))
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(text.encode()))
    else:
        path.write_text(text)
    return path


@pytest.fixture(scope="module")
def adapted():
    return quiet()


@pytest.mark.parametrize("kind", [CARP, ESM])
def test_a_copy_is_trained_and_gets_a_name_and_a_card(kind):
    start = tiny(kind)
    before = {name: value.clone() for name, value in start.state_dict().items()}
    state = torch.random.get_rng_state()
    made = quiet(start, config=replace(CONFIG, name=""))
    assert type(made) is kind and not made.training
    assert made.name == "tiny_adapted" == made.card.name
    assert all(torch.equal(value, before[name]) for name, value in start.state_dict().items())
    assert not same(start, made) and start.name == "tiny"
    assert torch.equal(torch.random.get_rng_state(), state)
    card = made.card
    assert (card.sequences, card.clusters, card.held_out_clusters) == (60, 60, 6)
    assert card.loss_after < card.loss_before == card.history[0][1]


def test_the_best_weights_are_kept():
    # so high a rate that the first measurement is the best, if any is
    made = quiet(config=replace(CONFIG, lr=3.0, updates=12, every=4))
    losses = dict(made.card.history)
    assert made.card.loss_after == min(losses.values()) == losses[made.card.best_update]
    assert made.card.best_update == 0 and same(made, tiny())


def test_the_training_ends_when_the_loss_no_longer_falls():
    made = quiet(config=replace(CONFIG, lr=3.0, updates=40, every=2, patience=2))
    assert made.card.updates == 4


def test_random_weights_come_from_the_seed():
    made = quiet("random:carp_4k", config=replace(CONFIG, name=""))
    assert made.name == "carp_4k_random_adapted"
    assert same(made, quiet("random", config=replace(CONFIG, size="carp_4k")))
    other = quiet("random", config=replace(CONFIG, size="carp_4k", seed=1))
    assert made.card.start_sha256 != other.card.start_sha256


def stop_after(updates: int):
    asked = []

    def stop() -> bool:
        asked.append(1)
        return len(asked) > updates

    return stop


def interrupt_at(update: int):
    def report(done: int, updates: int, loss: float) -> None:
        assert updates == CONFIG.updates and np.isfinite(loss)
        if done == update:
            raise KeyboardInterrupt

    return report


def test_a_run_that_was_stopped_goes_on_bit_for_bit(adapted, tmp_path):
    with pytest.raises(AdaptationStopped):
        quiet(folder=tmp_path, stop=stop_after(5))
    assert (tmp_path / "checkpoints" / "000000005.pt").exists()
    with pytest.raises(KeyboardInterrupt):
        adapt(tiny(), FAMILY, CONFIG, folder=tmp_path, progress=interrupt_at(7))
    made = quiet(folder=tmp_path)
    assert same(made, adapted) and made.card.history == adapted.card.history
    # finished: loaded, not trained again
    written = (tmp_path / "mine.safetensors").stat().st_mtime_ns
    assert same(quiet(folder=tmp_path), adapted)
    assert (tmp_path / "mine.safetensors").stat().st_mtime_ns == written


def test_stopped_without_a_folder_nothing_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with pytest.raises(AdaptationStopped, match="was stopped"):
        quiet(stop=stop_after(2))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_of_one_adaptation(tmp_path):
    quiet(folder=tmp_path)
    with pytest.raises(CarpError, match=r"masking=25, not 20"):
        quiet(folder=tmp_path, config=replace(CONFIG, masking=20))
    with pytest.raises(CarpError, match="start_sha256"):
        quiet(tiny(ESM), folder=tmp_path)
    with pytest.raises(CarpError, match="data_sha256"):
        quiet(folder=tmp_path, family=FAMILY[:-1])
    (tmp_path / "config.json").unlink()
    with pytest.raises(CarpError, match="belongs to another run"):
        quiet(folder=tmp_path, config=replace(CONFIG, masking=20))


def test_a_crowd_counts_once():
    crowd = relatives(41, changed=0.03)
    lonely = relatives(2, changed=1.0)[1:]
    family = read_relatives([*crowd, *lonely])
    weights, clusters = weigh_and_cluster(family)
    assert len(set(clusters)) == 2 and weights[-1] == 1
    assert weights[:-1].sum() == pytest.approx(1, abs=0.2)
    rows = FamilyRows(family, np.arange(len(weights)), CONFIG)
    batches = FamilyBatches(rows, weights, replace(CONFIG, batch_tokens=40_000), 100)
    drawn = [PROTEIN.decode(row) for row in batches[0][1]]
    assert drawn.count(lonely[0]) / len(drawn) == pytest.approx(0.5, abs=0.06)


def test_what_is_held_out_is_new_to_the_model(monkeypatch):
    seen = set()
    original = FamilyBatches.__getitem__

    def spy(self, step):
        batch = original(self, step)
        seen.update(PROTEIN.decode(row) for row in batch[1])
        return batch

    monkeypatch.setattr(FamilyBatches, "__getitem__", spy)
    # twins of every relative, which belong to its cluster
    twins = [s[:-1] + "W" for s in FAMILY]
    family = [*FAMILY, *twins]
    quiet(family=family, config=replace(CONFIG, updates=2, batch_tokens=8000))
    weights, clusters = weigh_and_cluster(read_relatives(family))
    held_out = hold_out(weights, clusters, 0.1)
    assert held_out.sum() == 12 and not held_out[0]
    assert seen.isdisjoint(np.array(family)[held_out]) and FAMILY[0] in seen
    assert len(seen) > 90


def test_with_few_relatives_none_is_held_out():
    made = quiet(family=FAMILY[:8])
    assert made.card.held_out_clusters == 0 and made.card.loss_before is None
    assert made.card.updates == made.card.best_update == 8
    assert "too few clusters" in made.card.describe()


def test_a_share_of_the_batches_is_of_other_sequences():
    other = Corpus.from_records([("w", "W" * 500)])
    family = read_relatives(FAMILY[:2])
    config = replace(CONFIG, mix=0.3, batch_tokens=40_000)
    rows = FamilyRows(family, np.arange(2), config, other)
    _, tokens, mask, _ = FamilyBatches(rows, np.ones(2), config, 1000)[0]
    share = (tokens[:, :40] == PROTEIN.tokens.index("W")).all(1).float().mean()
    assert float(share) == pytest.approx(0.3, abs=0.05)
    # cut to the longest of the family
    assert int(mask.sum(1).max()) == 40
    made = quiet(config=replace(CONFIG, mix=0.3, updates=4), pretraining=other)
    assert made.card.pretraining == "a corpus"
    assert (
        quiet(config=replace(CONFIG, mix=0.3, updates=4)).card.pretraining == "sprot_train_sample"
    )


@pytest.mark.parametrize("in_query", [0.0, 1.0])
def test_what_is_asked_stands_in_the_columns_of_the_query(tmp_path, in_query):
    rows = ["MKVAWMKVAW", "M-VkkAWMKICW", "MRV-----VW", "------CVAW"]
    family = read_relatives(write_a3m(tmp_path / "f.a3m", rows))
    config = replace(CONFIG, in_query=in_query, unaligned=0.0, masking=40, batch_tokens=4000)
    rows = FamilyRows(family, np.arange(1, 4), config)
    corrupted, tokens, mask, selected = FamilyBatches(rows, np.ones(3), config, 100)[0]
    decoded = {PROTEIN.decode(row) for row in tokens}
    # a gap is filled with the query's residue
    assert decoded == {"MKVAWMKICW", "MRVAWMKVVW", "MKVAWMCVAW"} and mask.sum() == 10 * len(tokens)
    # and never asked for
    gaps = {"MKVAWMKICW": [1], "MRVAWMKVVW": [3, 4, 5, 6, 7], "MKVAWMCVAW": range(6)}
    for row, asked in zip(tokens, selected):
        assert not asked[list(gaps[PROTEIN.decode(row)])].any()
    seen = PROTEIN.encode("MKVAWMKVAW").expand_as(tokens[:, :10]) if in_query else tokens[:, :10]
    kept = ~selected[:, :10]
    assert torch.equal(corrupted[:, :10][kept], seen[kept]) and 0.1 < kept.float().mean() < 0.9


def test_a_long_alignment_is_cropped_with_its_query(tmp_path):
    path = write_a3m(tmp_path / "f.a3m", ["MKVAW" * 20, "MKVCW" * 20, "IKV-W" * 20])
    rows = FamilyRows(read_relatives(path), np.arange(3), replace(CONFIG, unaligned=0.0))
    batches = FamilyBatches(rows, np.ones(3), replace(CONFIG, batch_tokens=700), 7)
    _, tokens, mask, _ = batches[0]
    assert int(mask.sum(1).max()) == 7
    for row in tokens:
        window = PROTEIN.decode(row).replace("C", "A").replace("I", "M")
        assert window in "MKVAW" * 3


def test_an_alignment_gives_the_aligned_regions(tmp_path):
    path = write_a3m(tmp_path / "f.a3m.gz", ["MKVAW", "M-VkkAW", "MRV--", "-----"])
    read = read_relatives(path)
    assert read.sequences == ["MKVAW", "MVKKAW", "MRV"] and read.rows.shape == (3, 5)
    assert read_relatives(read_alignment(path)).sequences == ["MKVAW", "MVAW", "MRV"]
    stockholm = tmp_path / "f.sto"
    stockholm.write_text("# STOCKHOLM 1.0\nq MKVAW\na M.VAW\n//\n")
    assert read_relatives(stockholm).sequences == ["MKVAW", "MVAW"]
    fasta = write_a3m(tmp_path / "f.fasta", ["MKVAW", "mrva", "MKV*"])
    assert read_relatives(fasta).sequences == ["MKVAW", "MRVA", "MKV"]


def test_a_large_family_is_read_up_to_a_limit(tmp_path):
    path = write_a3m(tmp_path / "large.a3m", [FAMILY[i % 60] for i in range(3000)])
    made = quiet(family=path, config=replace(CONFIG, most=30))
    assert (made.card.read, made.card.sequences) == (3000, 30)


def test_a_long_query_is_cropped(tmp_path):
    long = relatives(12, 20_000)
    path = write_a3m(tmp_path / "long.a3m", long)
    config = replace(CONFIG, updates=1, max_length=64, held_out=0.4)
    made = quiet(family=path, config=config)
    assert made.card.residues == 20_000 and made.card.held_out_clusters == 5
    assert np.isfinite(made.card.loss_after)


@pytest.mark.parametrize(
    "family, message",
    [
        ([], "the family is empty"),
        (["MKVAW"], "holds the query and no homolog"),
        (["MKVAW", "MKVAW"], "holds the query and no homolog"),
        (["ACGTACGTACGT", "ACGTTCGTACGT"], "holds DNA or RNA"),
        (["MKVAW", "MK1AW"], "sequence 2"),
    ],
)
def test_no_family(family, message):
    with pytest.raises(CarpError, match=message):
        quiet(family=family)


def test_no_family_in_a_file(tmp_path):
    one = write_a3m(tmp_path / "one.a3m", ["MKVAW"])
    with pytest.raises(CarpError, match=r"one\.a3m holds the query and no homolog"):
        quiet(family=one)
    ragged = write_a3m(tmp_path / "ragged.a3m", ["MKVAW", "M-V"])
    with pytest.raises(CarpError, match="s1 has 3 columns"):
        quiet(family=ragged)
    with pytest.raises(FileNotFoundError):
        quiet(family=tmp_path / "missing.a3m")


def test_the_family_of_another_protein():
    assert quiet(wild_type="AA" + FAMILY[0]).card.residues == 42
    with pytest.raises(CarpError, match="is not the wild type"):
        quiet(wild_type=FAMILY[1])


def test_what_cannot_be_adapted():
    with pytest.raises(CarpError, match="neither a CARP nor an ESM"):
        quiet(load_scorer("blosum62"))
    with pytest.raises(CarpError, match="choose from"):
        quiet("random:carp_5k")
    with pytest.raises(CarpError, match="masking is 0"):
        AdaptConfig(masking=0)


def test_an_adapted_model_is_a_model_as_any_other(adapted, tmp_path):
    path = save_checkpoint(adapted, tmp_path / "other_name.safetensors")
    loaded = load_model(path)
    assert loaded.name == "mine" and same(loaded, adapted) and read_card(path) == adapted.card
    wild_type = FAMILY[0]
    mutant = f"{wild_type[3]}4{'A' if wild_type[3] != 'A' else 'C'}"
    score = score_mutants(loaded, wild_type, [mutant])
    assert score == score_mutants(adapted, wild_type, [mutant])
    assert score != score_mutants(tiny(), wild_type, [mutant])
    assert mutation_scan(loaded, wild_type, [4]).shape == (1, 20)
    rows = pd.DataFrame({"sequence": FAMILY[:8], "target": np.arange(8.0)})
    fitted = finetune(
        loaded, rows, rows, FinetuneConfig("pt-ft", epochs=1), tmp_path / "fit", progress=False
    )
    assert fitted.name == "mine pt-ft"
    made = embed(loaded, FAMILY[:2], tmp_path / "mine.npz", progress=False)
    assert "mine" in made.describe()


def test_a_model_with_the_published_alphabet_of_esm():
    torch.manual_seed(0)
    config = ESMConfig(16, 2, 2, 32, 60, "fair_esm", token_dropout=True)
    start = ESM(config, "framed").eval()
    made = quiet(start, config=replace(CONFIG, updates=16))
    assert made.card.loss_after < made.card.loss_before - 0.1
    assert made.alphabet is start.alphabet


def test_flanks_come_from_whole_sequences(tmp_path):
    family = write_a3m(tmp_path / "family.a3m", [s[5:-5] for s in FAMILY])
    whole = write_a3m(tmp_path / "whole.fasta", FAMILY)
    plain = quiet(family=family, config=replace(CONFIG, updates=1))
    flanked = quiet(family=family, config=replace(CONFIG, updates=1, flank=3), whole=whole)
    assert plain.card.data_sha256 != flanked.card.data_sha256
    assert plain.card.clusters == flanked.card.clusters


def test_the_command(tmp_path):
    family = write_a3m(tmp_path / "family.a3m", FAMILY)
    weights = save_checkpoint(tiny(), tmp_path / "tiny.safetensors")
    output = tmp_path / "new" / "mine.safetensors"
    words = ["adapt", family, "--model", weights, "-o", output, "--updates", 4, "--mix", 0.1]
    words += ["--resume", tmp_path / "run"]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    said = done.stdout.splitlines()[-1]
    assert said.startswith("59 homologs in 60 clusters; held-out loss ") and str(output) in said
    assert load_model(output).name == "mine"
    text = output.with_suffix(".md").read_text()
    assert text.startswith("# mine\n") and "sprot\\_train\\_sample" not in text
    assert "sprot_train_sample, 10% of the sequences" in text
    assert json.loads((tmp_path / "run/config.json").read_text())["config"]["updates"] == 4


def test_the_name_at_the_top():
    assert carp_nb.adapt is adapt


INIT = PretrainConfig("carp_4k", tokens=600, batch_tokens=256, max_length=64, snapshots=0)


def pretrained(folder: Path, init: object = "", config: PretrainConfig = INIT):
    corpus = Corpus.from_records([(str(i), s) for i, s in enumerate(FAMILY)])
    return pretrain(replace(config, init=str(init)), corpus, FAMILY[:4], folder, progress=False)


def test_pretraining_begins_with_given_weights(tmp_path):
    weights = save_checkpoint(tiny(), tmp_path / "tiny.safetensors")
    made = pretrained(tmp_path / "run", weights, replace(INIT, lr=1e-12))
    assert torch.allclose(made.decoder.weight, tiny().decoder.weight, atol=1e-6)
    record = json.loads((tmp_path / "run/config.json").read_text())
    assert record["config"]["init"] == str(weights) and len(record["config"]["init_sha256"]) == 64


def test_the_given_weights_are_part_of_a_run(tmp_path):
    weights = save_checkpoint(tiny(), tmp_path / "tiny.safetensors")
    made = pretrained(tmp_path / "run", weights)
    # the same weights under another name go on
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(weights.read_bytes())
    assert same(pretrained(tmp_path / "run", copy), made)
    with pytest.raises(CarpError, match="holds a run with init_sha256="):
        pretrained(tmp_path / "run")
    pretrained(tmp_path / "plain")
    with pytest.raises(CarpError, match="holds a run with init_sha256=''"):
        pretrained(tmp_path / "plain", weights)
    # a record from before there was the setting is of random weights
    path = tmp_path / "plain/config.json"
    record = json.loads(path.read_text())
    del record["config"]["init"]
    path.write_text(json.dumps(record))
    pretrained(tmp_path / "plain")
    with pytest.raises(CarpError, match="holds a run with init_sha256=''"):
        pretrained(tmp_path / "plain", weights)


def test_given_weights_of_another_size(tmp_path):
    with pytest.raises(CarpError, match="a model of the size carp_600k, and the size of this run"):
        pretrained(tmp_path, "carp_600k_sprot50")
    assert list(tmp_path.iterdir()) == []


def test_the_notebook(papermill, tmp_path):
    wild_type = load_scan("abeta42").wild_type
    rng = np.random.default_rng(0)
    rows = [wild_type]
    for _ in range(45):
        changed = rng.random(len(wild_type)) < 0.4
        letters = rng.choice(list(AMINO_ACIDS), len(wild_type))
        rows.append("".join(np.where(changed, letters, list(wild_type))))
    done = papermill(
        "adapt",
        model="random:carp_4k",
        family=write_a3m(tmp_path / "abeta42.a3m", rows),
        scan="abeta42",
        homologs="42,45",
        updates="2,4",
        batch_tokens=400,
    )
    assert done.status == 0, done.shown
    results = pd.read_parquet(done.out / "results.parquet")
    spearman = results[results.metric == "spearman"]
    assert spearman.method.value_counts().to_dict() == {
        "adapted, masked": 4,
        "unadapted, masked": 1,
    }
    assert set(spearman.split) >= {"0 homologs, 0 updates", "45 homologs, 4 updates"}
    assert (results.metric == "held-out loss after").sum() == 4
    for name in ("loss.svg", "map.svg", "homologs.svg", "updates.svg", "after.csv", "cards.csv"):
        assert (done.out / name).exists()


def test_the_notebook_scores_each_model_by_its_own_method(papermill, tmp_path):
    wild_type = load_scan("abeta42").wild_type
    family = write_a3m(tmp_path / "abeta42.a3m", [wild_type, *[wild_type[:-1] + "V"] * 3])
    done = papermill("adapt", family=family, scan="abeta42", updates=1, batch_tokens=100)
    assert done.status == 0, done.shown
    results = pd.read_parquet(done.out / "results.parquet")
    methods = results[results.metric == "spearman"].method
    assert methods.tolist() == ["unadapted, wild-type", "adapted, masked"]
    before = pd.read_csv(done.out / "before.csv", index_col="position")
    model = load_model(DEFAULT_MODEL, "cpu")
    expected = mutation_scan(model, wild_type, method="wild-type")
    np.testing.assert_allclose(before, expected, atol=1e-4)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"homologs": "x"}, "homologs is 'x'; it must be whole numbers, separated by commas."),
        ({"seeds": 0}, "seeds is 0; it must be at least 1."),
    ],
)
def test_the_notebook_says_which_number_is_none(papermill, given, told):
    done = papermill("adapt", model="random:carp_4k", **given)
    assert done.status == 1 and told in done.shown


def test_the_notebook_proposes_the_settings_that_were_chosen():
    proposed = notebook_parameters("adapt")
    for name in ("lr", "masking", "mix", "batch_tokens"):
        assert proposed[name].default == getattr(AdaptConfig(), name)
    assert get_budget("adapt", "laptop").updates == AdaptConfig().updates


def test_fewer_updates_are_made_where_nothing_is_held_out():
    few = _make_task(tiny(), FAMILY[:6], AdaptConfig())
    many = _make_task(tiny(), FAMILY, AdaptConfig(held_out=0.5))
    assert (few.held_out.any(), few.config.updates) == (False, 150)
    assert (many.held_out.any(), many.config.updates) == (True, 300)
    assert _make_task(tiny(), FAMILY[:6], AdaptConfig(updates=7)).config.updates == 7


def test_pretraining_data_belong_with_their_share():
    with pytest.raises(CarpError, match="used with mix"):
        quiet(pretraining="sprot_train_sample")


def test_whole_sequences_of_others_are_noticed(tmp_path):
    (tmp_path / "whole.fa").write_text(">other\nMKVLLA\n")
    with pytest.warns(UserWarning, match="holds no residues beside the homologs"):
        quiet(config=replace(CONFIG, updates=1), whole=tmp_path / "whole.fa")


def test_a_seed_below_zero_is_refused():
    with pytest.raises(CarpError, match="seed is -1; give 0 or more"):
        AdaptConfig(seed=-1)
