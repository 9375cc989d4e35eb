"""Train, sample and evaluate from Python: a small model of scikit-learn's digits, in two minutes on two CPU cores.

pip install 'maskdm[demo]' && python examples/quickstart.py
"""

import numpy as np
from sklearn.datasets import load_digits

import maskdm

digits = load_digits()  # 1,797 images of 8 x 8 pixels
np.savez("digits.npz", images=np.round(digits.images * (255 / 16)).astype(np.uint8), labels=digits.target)

result = maskdm.train("digits.npz", recipe="digits", settings={"stages.0.steps": 400, "stages.1.steps": 200})
print(f"{result.run}: held-out error {result.heldout_error:.3f}")

images = maskdm.sample(result.run, 30, labels=range(10), output="samples")  # (30, 1, 8, 8) in [0, 1], and PNGs
print(f"{tuple(images.shape)}, {images.min():.2f} to {images.max():.2f}")

evaluation = maskdm.evaluate(result.run, num=500)
for score in evaluation.scores:
    print(f"{score.name:60} {score.value:8.3f}")
