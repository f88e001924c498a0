# make demo       a teacher, a student without and one with attention loss, compared: 10 minutes on 2 CPU cores
# make demo-uag   attention-guided translation of drawn fruit and its two ablations: 6 minutes on 2 CPU cores
# make test       the test suite
# make bench      speed of the training steps and of evaluate.py, with profiles: 7 minutes on 2 CPU cores; out/bench/
# make bench-gpu  that, the table against batch and image size, and the tests that need a GPU
# make table1 table2 table3 table4 ablation   the paper's experiments, on prepared data and a GPU: see below
# The demos and tests start from a fresh clone; demos and tables pick up where they were when run again.
# `rm -rf out/demo out/demo-uag` starts the demos over.

PY := .venv/bin/python
.PHONY: demo demo-uag test bench bench-gpu clean
.DELETE_ON_ERROR:

.venv/installed: requirements.txt
	python3 -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

# Small enough for two cores: 32 px, a small teacher, one G step for each D step, a high learning rate, and the losses
# that teach the attributes and keep the face (cls, rec) weighted up against the adversarial one. The students share the
# cores, one each: on a CPU the number of threads belongs to what makes a run repeatable.
DEMO = out/demo
DEMO_TRAIN = --n_critic=1 --lr=2e-3 --lambda_cls=5 --lambda_rec=70 --dtype=bfloat16 --log_interval=100 \
             --sample_interval=500 --ckpt_interval=500 --resume=True
DEMO_S = train_student.py --teacher=$(DEMO)/T/ckpt.pt --conv_dim=12 --n_blocks=1 --max_iters=1200 $(DEMO_TRAIN)
demo: .venv/installed
	$(PY) data/toyfaces/prepare.py --image_size=32 --balance=1 --n_train=8000 --n_val=200 --n_test=500 --dst=$(DEMO)/data
	OMP_NUM_THREADS=2 $(PY) train_teacher.py --dataset=$(DEMO)/data --out_dir=$(DEMO)/T $(DEMO_TRAIN) --max_iters=4000 \
	    --attrs=Blond_Hair,Eyeglasses,Mustache,Rosy_Cheeks,Pale_Skin --lambda_cls=7 --lr=1.5e-3 \
	    --conv_dim=24 --n_blocks=2 --d_conv_dim=32 --d_n_layers=4
	export OMP_NUM_THREADS=1; $(PY) $(DEMO_S) --lambda_att=0 --out_dir=$(DEMO)/S-without & a=$$!; \
	    $(PY) $(DEMO_S) --lambda_att=10 --out_dir=$(DEMO)/S-with && wait $$a
	$(PY) evaluate.py --ckpt=$(DEMO)/T/ckpt.pt,$(DEMO)/S-without/ckpt.pt,$(DEMO)/S-with/ckpt.pt \
	    --out_dir=$(DEMO)/eval --clf_dir=$(DEMO)/clf --clf_epochs=4 --inception=none

# 64 px, small nets, batches of 2; an epoch is 500 iterations. The switch comes when the maps have found the fruit.
UAG = out/demo-uag
UAG_TRAIN = $(PY) train_uag.py --dataset=$(UAG)/data --ngf=16 --n_blocks=3 --ndf=32 --naf=16 --d_n_layers=2 \
            --batch_size=2 --lr=1e-3 --n_epochs=3 --n_epochs_decay=1.5 --switch_epoch=1.5 --dtype=bfloat16 \
            --log_interval=100 --sample_interval=500 --ckpt_interval=500 --resume=True
demo-uag: .venv/installed
	$(PY) data/toyfruit/prepare.py --n_train=1000 --n_test=100 --dst=$(UAG)/data
	export OMP_NUM_THREADS=1; $(UAG_TRAIN) --masked_d=False --out_dir=$(UAG)/UAG-D & a=$$!; \
	    $(UAG_TRAIN) --attention=False --out_dir=$(UAG)/CycleGAN & b=$$!; \
	    $(UAG_TRAIN) --out_dir=$(UAG)/UAG && wait $$a && wait $$b
	$(PY) evaluate.py --ckpt=$(UAG)/UAG/ckpt.pt,$(UAG)/UAG-D/ckpt.pt,$(UAG)/CycleGAN/ckpt.pt \
	    --out_dir=$(UAG)/eval --clf_dir=$(UAG)/clf --clf_epochs=3 --inception=none

test: .venv/installed
	$(PY) -m pytest -q tests

bench: .venv/installed
	$(PY) tests/bench.py
	$(PY) tests/bench.py --profile=True
	$(PY) tests/bench.py --count=True
	$(PY) tests/bench.py --evaluation=True --repeats=3

bench-gpu: bench
	$(PY) tests/bench.py --scaling=True
	$(PY) -m pytest -q -rs tests/test_gpu.py tests/test_speed.py

clean:
	rm -rf out .venv

# The experiments of the attention distillation paper, on prepared data (python data/celeba/prepare.py --src=...).
# A finished run is skipped, an interrupted one goes on where it was. In small, on drawn faces:
# `make table1 DATASET=toyfaces SIZE=64 ITERS=20000 SEEDS=0 TRAIN=--dtype=bfloat16`
OUT = out
DATASET = celeba
DATASET4 = toyexpressions
SIZE = 128
# 0: as the data is
SIZE4 = 0
ITERS = 200000
# one student each
SEEDS = 0 1 2
T_NET = --conv_dim=64 --n_blocks=6
S_NET = --conv_dim=32 --n_blocks=3
LITE_NET = --conv_dim=16 --n_blocks=1
# residual blocks of the ablation, from the last on; S has 3
BLOCKS = -2 -3
# more flags, for every training run and for evaluate.py
TRAIN =
EVAL =
PSEUDO = --attrs=Brown_Hair,Gray_Hair,Bald,Straight_Hair --pseudo=Black_Hair,Blond_Hair,Wearing_Hat,Wavy_Hair
.PHONY: table1 table2 table3 table4 ablation teacher1

TEACHER = $(PY) train_teacher.py $(T_NET) --max_iters=$(ITERS) $(TRAIN) --resume=True
STUDENT = $(PY) train_student.py --max_iters=$(ITERS) $(TRAIN) --resume=True
# $(call with_and_without,out_dir of all of them,flags): for every seed a student without and one with attention loss
with_and_without = for s in $(SEEDS); do for a in 0 10; do \
                       $(STUDENT) $(2) --lambda_att=$$a --seed=$$s --out_dir=$(1)-att$$a-s$$s || exit 1; done; done
# $(call compare,out_dir,teacher's folder,folders of the students): the table of evaluate.py
compare = $(PY) evaluate.py --ckpt=$$(echo $(2)/ckpt.pt $(3)/ckpt.pt | tr ' ' ,) --out_dir=$(1) $(EVAL)

teacher1: .venv/installed
	$(TEACHER) --dataset=$(DATASET) --image_size=$(SIZE) --out_dir=$(OUT)/table1/T

# T, S without and S with attention loss, 7 attributes
table1: teacher1
	$(call with_and_without,$(OUT)/table1/S,$(S_NET) --teacher=$(OUT)/table1/T/ckpt.pt)
	$(call compare,$(OUT)/table1,$(OUT)/table1/T,$(OUT)/table1/S-*)

# S-Lite, with the teacher of table 1
table2: teacher1
	$(call with_and_without,$(OUT)/table2/S-Lite,$(LITE_NET) --teacher=$(OUT)/table1/T/ckpt.pt)
	$(call compare,$(OUT)/table2,$(OUT)/table1/T,$(OUT)/table2/S-*)

# pseudo-attention: teacher and students have different attributes
table3: .venv/installed
	$(TEACHER) --dataset=$(DATASET) --image_size=$(SIZE) --out_dir=$(OUT)/table3/T \
	    --attrs=Black_Hair,Blond_Hair,Wearing_Hat,Wavy_Hair
	$(call with_and_without,$(OUT)/table3/S,$(S_NET) $(PSEUDO) --teacher=$(OUT)/table3/T/ckpt.pt)
	$(call compare,$(OUT)/table3,$(OUT)/table3/T,$(OUT)/table3/S-*)

# S-Lite on facial expressions, one class for each image
table4: .venv/installed
	$(TEACHER) --dataset=$(DATASET4) --image_size=$(SIZE4) --attrs=all --out_dir=$(OUT)/table4/T
	$(call with_and_without,$(OUT)/table4/S-Lite,$(LITE_NET) --teacher=$(OUT)/table4/T/ckpt.pt)
	$(call compare,$(OUT)/table4,$(OUT)/table4/T,$(OUT)/table4/S-*)

# S by map, norm and weight of L_att (18 students for each seed) and by block; S without, and two controls, which should
# not help: an untrained teacher (one iteration), and the teacher's maps dealt to other images
ablation: teacher1
	$(TEACHER) --dataset=$(DATASET) --image_size=$(SIZE) --max_iters=1 --out_dir=$(OUT)/ablation/T-untrained
	for s in $(SEEDS); do \
	    train() { name=$$1; shift; $(STUDENT) $(S_NET) --seed=$$s --teacher=$(OUT)/table1/T/ckpt.pt "$$@" \
	                  --out_dir=$(OUT)/ablation/S-$$name-s$$s || exit 1; }; \
	    train without --lambda_att=0; \
	    train untrained --teacher=$(OUT)/ablation/T-untrained/ckpt.pt; \
	    train shuffled --att_control=shuffle; \
	    for b in $(BLOCKS); do train block$$b --hook_block=$$b; done; \
	    for cam in gradcam hirescam; do for norm in none l2 max; do for a in 1 10 100; do \
	        train $$cam-$$norm-att$$a --cam=$$cam --att_norm=$$norm --lambda_att=$$a; \
	    done; done; done; done
	$(call compare,$(OUT)/ablation,$(OUT)/table1/T,$(OUT)/ablation/S-*) --baseline=S-without
