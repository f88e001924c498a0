"""The README's lines that use a student in a program of one's own: they run, and give what G gives."""

import re
import sys

import pytest
import torch
from conftest import ROOT
from PIL import Image


@pytest.fixture
def readme(student, tmp_path, monkeypatch):
    """-> the README's Python blocks, in order, with a tiny student of 16 px for the demo's of 32 px."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, 'path', [ROOT, *sys.path])
    with open(f'{ROOT}/README.md', encoding='utf-8') as file:
        text = file.read()
    replaced = {
        'out/demo/S-with': str(student),
        'assets/face.png': f'{ROOT}/assets/face.png',
        '(32, 32)': '(16, 16)',
        'Eyeglasses': 'a',
    }
    for old, new in replaced.items():
        assert old in text
        text = text.replace(old, new)
    return re.findall(r'```python\n(.*?)```', text, re.S)


def images_and_labels():
    """Another number of images than the README's."""
    torch.manual_seed(0)
    x = torch.rand(5, 3, 16, 16) * 2 - 1
    return x, torch.randint(2, (5, 3)).float()


def test_a_picture_is_translated_and_G_is_saved_alone(readme, tmp_path):
    load, export, _ = readme
    names = {}
    exec(load, names)
    with Image.open(tmp_path / 'glasses.png') as picture:
        assert picture.size == (16, 16)
    exec(export, names)
    G = torch.export.load('G.pt2').module()
    x, c = images_and_labels()
    torch.testing.assert_close(G(x, c), names['G'](x, c), rtol=0, atol=1e-5)
    # The line that the README gives as a comment.
    assert "torch.export.load('G.pt2').module()" in export


def test_the_onnx_file_gives_the_same(readme):
    pytest.importorskip('onnxscript', reason='wants: pip install onnx onnxscript onnxruntime')
    onnxruntime = pytest.importorskip('onnxruntime', reason='wants: pip install onnx onnxscript onnxruntime')
    names = {}
    for block in readme:
        exec(block, names)
    session = onnxruntime.InferenceSession('G.onnx')
    x, c = images_and_labels()
    inputs = [value.name for value in session.get_inputs()]
    output, = session.run(None, dict(zip(inputs, (x.numpy(), c.numpy()))))
    torch.testing.assert_close(torch.from_numpy(output), names['G'](x, c), rtol=0, atol=1e-5)
