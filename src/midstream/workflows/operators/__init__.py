"""Operators: the ten of AFlow, and those that plan, decompose, aggregate, verify, search and call tools.

`OPERATORS` is the whole set; `AFLOW` holds AFlow's ten and `AFLOW_SETS` the ones it enables for each kind of problem.
"""

from midstream.workflows.operators.answers import answer_generate, custom, format_answer
from midstream.workflows.operators.code import custom_code_generate, programmer, test_code
from midstream.workflows.operators.context import OperatorContext, OperatorFailed
from midstream.workflows.operators.critics import review, revise, verify
from midstream.workflows.operators.declare import Operator, OperatorSet, Parameter, operator
from midstream.workflows.operators.ensembles import aggregate, md_ensemble, sc_ensemble
from midstream.workflows.operators.outside import call_tool, search
from midstream.workflows.operators.planning import decompose, plan

AFLOW = OperatorSet(
    [
        custom,
        answer_generate,
        custom_code_generate,
        sc_ensemble,
        programmer,
        test_code,
        format_answer,
        review,
        revise,
        md_ensemble,
    ]
)
OPERATORS = AFLOW.with_(plan, decompose, aggregate, verify, search, call_tool)
AFLOW_SETS = {
    "qa": ("Custom", "AnswerGenerate", "ScEnsemble"),
    "math": ("Custom", "ScEnsemble", "Programmer"),
    "code": ("Custom", "CustomCodeGenerate", "ScEnsemble", "Test"),
}

__all__ = [
    "AFLOW",
    "AFLOW_SETS",
    "OPERATORS",
    "Operator",
    "OperatorContext",
    "OperatorFailed",
    "OperatorSet",
    "Parameter",
    "operator",
]
