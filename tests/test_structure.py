"""Chains out of deposited files, and the contact head in half precision."""
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from carp_nb.heads import ContactHead
from carp_nb.structure import contact_map, read_chain

DEPOSITED = Path(os.environ.get("CARP_NB_DATA", "")) / "structures" / "deposited"
here = pytest.mark.skipif(not (DEPOSITED / "1ubi.pdb").is_file(), reason="CARP_NB_DATA has no structures/deposited")


@here
def test_ubiquitin():
    chain = read_chain(DEPOSITED / "1ubi.pdb")
    assert chain.sequence.startswith("MQIFVKTLTGKTITLEVEPSDTIENVKAKIQDKEGIPPDQQRLIFAGKQLEDGRTLSDYNIQKESTLHLVLRL")
    contacts = contact_map(chain)
    assert contacts[0, 62] and not contacts[0, 40] and (contacts == contacts.T).all()   # strands 1 and 5 are neighbours


@here
def test_a_file_with_several_chains_asks_which():   # 3hsy has a third one, of sugars
    with pytest.raises(ValueError, match=r"holds 2 chains; choose one of A, B\."): read_chain(DEPOSITED / "3hsy.pdb")
    assert np.isfinite(read_chain(DEPOSITED / "3hsy.pdb", "A").ca).all()


def test_contact_head_in_bfloat16():
    torch.manual_seed(0)
    head, x, mask = ContactHead(32, 32, 16, 24).eval(), torch.randn(2, 40, 32), torch.ones(2, 40, dtype=torch.bool)
    with torch.no_grad():
        exact = head(x, mask)
        with torch.autocast("cpu", torch.bfloat16): half = head(x, mask)
    assert torch.corrcoef(torch.stack([exact.flatten(), half.flatten()]))[0, 1] > 0.99
