"""Few-shot search: a space divided among several supernets.

A *metric* (`metrics`) says how alike the options of a choice are, a *partitioner* (`partition`)
cuts them into groups, a rule (`choice`) finds the choice to split, `splitting` does so level by
level, and the *plan* says which sub-supernet serves which architecture.
"""

from sigeo.fewshot import choice, metrics, partition
from sigeo.fewshot.analysis import Analysis, Child, analyse
from sigeo.fewshot.branching import EVERY, Branching
from sigeo.fewshot.choice import AnyChoice, BestGroups, ChoiceRule, InTurn
from sigeo.fewshot.copies import CumulativeCopies
from sigeo.fewshot.kind_functions import KindFunction, kind_function, register_kind
from sigeo.fewshot.known import Known
from sigeo.fewshot.metrics import Metric, Subject
from sigeo.fewshot.narrowing import Stage, hierarchy_cuts, narrow_by_table
from sigeo.fewshot.partition import Partitioner, Relation
from sigeo.fewshot.plan import Cut, Node, Plan, joint, split_by_kind, whole_space
from sigeo.fewshot.plan_figure import draw_plan, plan_tree
from sigeo.fewshot.plan_file import load_plan, plan_document, plan_of, save_plan
from sigeo.fewshot.splitting import Divided, Splitting, Train, split

__all__ = [
    "EVERY",
    "Analysis",
    "AnyChoice",
    "BestGroups",
    "Branching",
    "Child",
    "ChoiceRule",
    "CumulativeCopies",
    "Cut",
    "Divided",
    "InTurn",
    "KindFunction",
    "Known",
    "Metric",
    "Node",
    "Partitioner",
    "Plan",
    "Relation",
    "Splitting",
    "Stage",
    "Subject",
    "Train",
    "analyse",
    "choice",
    "draw_plan",
    "hierarchy_cuts",
    "joint",
    "kind_function",
    "load_plan",
    "metrics",
    "narrow_by_table",
    "partition",
    "plan_document",
    "plan_of",
    "plan_tree",
    "register_kind",
    "save_plan",
    "split",
    "split_by_kind",
    "whole_space",
]
