"""BibTeX for the components in use."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

_ENTRIES = {
    "trifold": """@software{trifold,
  title  = {trifold: flat, invariant and transferable representations},
  author = {{The trifold developers}},
  year   = {2026}
}""",
    "trvae": """@article{lotfollahi2020trvae,
  title   = {Conditional out-of-distribution generation for unpaired data using transfer {VAE}},
  author  = {Lotfollahi, Mohammad and Naghipourfar, Mohsen and Theis, Fabian J. and Wolf, F. Alexander},
  journal = {Bioinformatics},
  volume  = {36},
  number  = {Supplement 2},
  pages   = {i610--i617},
  year    = {2020},
  doi     = {10.1093/bioinformatics/btaa800}
}""",
    "gamma_vae": """@article{kim2024gamma,
  title   = {{$\\Gamma$-VAE}: Curvature regularized variational autoencoders for uncovering emergent low dimensional geometric structure
             in high dimensional data},
  author  = {Kim, Jason Z. and Perrin-Gilbert, Nicolas and Narmanli, Erkan and Klein, Paul and Myers, Christopher R. and Cohen, Itai and
             Waterfall, Joshua J. and Sethna, James P.},
  journal = {arXiv preprint arXiv:2403.01078},
  year    = {2024}
}""",
    "invae": """@article{aliee2023conditionally,
  title   = {Conditionally Invariant Representation Learning for Disentangling Cellular Heterogeneity},
  author  = {Aliee, Hananeh and Kapl, Ferdinand and Hediyeh-Zadeh, Soroor and Theis, Fabian J.},
  journal = {arXiv preprint arXiv:2307.00558},
  year    = {2023}
}""",
    "curvature": """@article{bates1980relative,
  title   = {Relative Curvature Measures of Nonlinearity},
  author  = {Bates, Douglas M. and Watts, Donald G.},
  journal = {Journal of the Royal Statistical Society: Series B},
  volume  = {42},
  number  = {1},
  pages   = {1--25},
  year    = {1980}
}""",
    "isometry": """@inproceedings{lee2022regularized,
  title     = {Regularized Autoencoders for Isometric Representation Learning},
  author    = {Lee, Yonghyeon and Yoon, Sangwoong and Son, MinJun and Park, Frank C.},
  booktitle = {International Conference on Learning Representations},
  year      = {2022}
}""",
    "ppca": """@article{tipping1999probabilistic,
  title   = {Probabilistic Principal Component Analysis},
  author  = {Tipping, Michael E. and Bishop, Christopher M.},
  journal = {Journal of the Royal Statistical Society: Series B},
  volume  = {61},
  number  = {3},
  pages   = {611--622},
  year    = {1999}
}""",
    "mmd": """@article{gretton2012kernel,
  title   = {A Kernel Two-Sample Test},
  author  = {Gretton, Arthur and Borgwardt, Karsten M. and Rasch, Malte J. and Sch{\\"o}lkopf, Bernhard and Smola, Alexander},
  journal = {Journal of Machine Learning Research},
  volume  = {13},
  pages   = {723--773},
  year    = {2012}
}""",
    "adversary": """@article{ganin2016domain,
  title   = {Domain-Adversarial Training of Neural Networks},
  author  = {Ganin, Yaroslav and Ustinova, Evgeniya and Ajakan, Hana and Germain, Pascal and Larochelle, Hugo and
             Laviolette, Fran{\\c{c}}ois and Marchand, Mario and Lempitsky, Victor},
  journal = {Journal of Machine Learning Research},
  volume  = {17},
  number  = {59},
  pages   = {1--35},
  year    = {2016}
}""",
    "mixture": """@inproceedings{hershey2007approximating,
  title     = {Approximating the {Kullback Leibler} Divergence Between {Gaussian} Mixture Models},
  author    = {Hershey, John R. and Olsen, Peder A.},
  booktitle = {IEEE International Conference on Acoustics, Speech and Signal Processing},
  volume    = {4},
  pages     = {317--320},
  year      = {2007},
  doi       = {10.1109/ICASSP.2007.366913}
}""",
    "score matching": """@article{hyvarinen2005estimation,
  title   = {Estimation of Non-Normalized Statistical Models by Score Matching},
  author  = {Hyv{\\"a}rinen, Aapo},
  journal = {Journal of Machine Learning Research},
  volume  = {6},
  pages   = {695--709},
  year    = {2005}
}""",
    "hsic": """@inproceedings{gretton2005measuring,
  title     = {Measuring Statistical Dependence with {Hilbert-Schmidt} Norms},
  author    = {Gretton, Arthur and Bousquet, Olivier and Smola, Alex and Sch{\\"o}lkopf, Bernhard},
  booktitle = {Algorithmic Learning Theory},
  pages     = {63--77},
  year      = {2005}
}""",
    "unbiased hsic": """@article{song2012feature,
  title   = {Feature Selection via Dependence Maximization},
  author  = {Song, Le and Smola, Alex and Gretton, Arthur and Bedo, Justin and Borgwardt, Karsten},
  journal = {Journal of Machine Learning Research},
  volume  = {13},
  pages   = {1393--1434},
  year    = {2012}
}""",
    "total correlation": """@inproceedings{chen2018isolating,
  title     = {Isolating Sources of Disentanglement in Variational Autoencoders},
  author    = {Chen, Ricky T. Q. and Li, Xuechen and Grosse, Roger and Duvenaud, David},
  booktitle = {Advances in Neural Information Processing Systems},
  volume    = {31},
  year      = {2018}
}""",
    "irm": """@article{arjovsky2019invariant,
  title   = {Invariant Risk Minimization},
  author  = {Arjovsky, Martin and Bottou, L{\\'e}on and Gulrajani, Ishaan and Lopez-Paz, David},
  journal = {arXiv preprint arXiv:1907.02893},
  year    = {2019}
}""",
    "vae": """@inproceedings{kingma2014auto,
  title     = {Auto-Encoding Variational {Bayes}},
  author    = {Kingma, Diederik P. and Welling, Max},
  booktitle = {International Conference on Learning Representations},
  year      = {2014}
}""",
    "counts": """@article{lopez2018deep,
  title   = {Deep generative modeling for single-cell transcriptomics},
  author  = {Lopez, Romain and Regier, Jeffrey and Cole, Michael B. and Jordan, Michael I. and Yosef, Nir},
  journal = {Nature Methods},
  volume  = {15},
  pages   = {1053--1058},
  year    = {2018},
  doi     = {10.1038/s41592-018-0229-2}
}""",
}

_NEEDED: dict[str, tuple[str, ...]] = {
    "VAE": ("vae",),
    "MMD": ("mmd",),
    "ConditionalMMD": ("mmd",),
    "HSIC": ("hsic", "unbiased hsic"),
    "Probe": ("adversary",),
    "TotalCorrelation": ("total correlation",),
    "Energy": ("score matching",),
    "ScoreMatching": ("score matching",),
    "Mixture": ("mixture",),
    "Curvature": ("curvature",),
    "Isometry": ("isometry",),
    "NegativeBinomial": ("counts",),
    "ZeroInflated": ("counts",),
    "linear": ("ppca",),
    "unknown": ("mixture",),
    "irm": ("irm",),
}


def bibtex(spec: Any, *, preset: str | None = None) -> str:
    """BibTeX entries for what a specification names.

    Args:
        spec: Plain data as :func:`trifold.spec.to_spec` gives it.
        preset: Name of the preset that made the model, if any.

    Returns:
        Entries separated by empty lines: trifold itself, the preset's paper, then those of the components.
    """
    wanted = ["trifold", *([preset] if preset in _ENTRIES else [])]
    wanted += [key for name in _named(spec) for key in _NEEDED.get(name, ())]
    return "\n\n".join(_ENTRIES[key] for key in dict.fromkeys(k for k in wanted if k is not None))


def _named(spec: Any) -> Iterable[str]:
    """Classes, and arguments at values that stand for a method of their own."""
    if isinstance(spec, Mapping):
        if isinstance(spec.get("class"), str):
            yield spec["class"].rpartition(":")[2]
        for name, value in spec.items():
            if (name, value) in (("linear", True), ("unknown", "mixture")) or (
                name == "irm" and isinstance(value, (int, float)) and value > 0
            ):
                yield name
            yield from _named(value)
    elif isinstance(spec, list):
        for value in spec:
            yield from _named(value)
