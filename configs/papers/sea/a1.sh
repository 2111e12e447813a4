#!/bin/sh
# Table A1 from nothing: teachers, then their students. See steps.sh.
exec sh configs/papers/sea/steps.sh a1_start a1_teacher a1 -- "$@"
