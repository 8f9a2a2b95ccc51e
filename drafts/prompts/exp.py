import copy, dataclasses, math, time, sys, torch
from torch import nn
import diffusion_book
from diffusion_book import data, samplers
from diffusion_book.denoiser import Denoiser
from diffusion_book.evaluation.features import logits
from diffusion_book.guidance import guided
from diffusion_book.models.recipes import TrainingConfig
from diffusion_book.networks.conditioning import ClassEmbedding, ConditionalUNet, NO_CLASS
from diffusion_book.targets import TARGETS
from diffusion_book.training.latents import encode_dataset
from diffusion_book.training.losses import loss_of_latent_diffusion
from diffusion_book.training.trainer import Trainer
from diffusion_book.viz import grids
torch.set_num_threads(2 if len(sys.argv) > 2 else 1)
STEPS=int(sys.argv[1])
def stroke_width(pictures):
    x=(pictures+1)/2
    d=x[...,1:,:]-x[...,:-1,:]; e=x[...,:,1:]-x[...,:,:-1]
    contour=(d[...,:,:-1].square()+e[...,:-1,:].square()).sqrt().sum((1,2,3))
    return 2*x.sum((1,2,3))/contour
pipe=diffusion_book.load("ldm-cross-attention",device="cpu",precision="fp32"); vae=pipe.autoencoder
train=data.load("auto")
few=data.Dataset(train.name,train.images[:12000],train.labels[:12000])
pics=(few.images.float()/127.5-1).reshape(-1,1,28,28)
w=stroke_width(pics); print(w.quantile(torch.tensor([0,.1,.25,.5,.75,.9,1])))
for d in range(10): print(d, w[few.labels==d].median().item(), (w[few.labels==d]>w.median()).float().mean().item())
edges=w.quantile(torch.tensor([1/3,2/3]))
width=torch.bucketize(w,edges)   # 0 thin,1 medium,2 bold
code=few.labels.long()*2+(width==2).long()
HELD=torch.tensor([2*2+1,7*2+1,3*2,5*2,9*2+1,8*2])
keep=(width!=1)&~torch.isin(code,HELD)
enc=encode_dataset(vae,data.Dataset(train.name,few.images[keep],code[keep].to(few.labels.dtype)))
print(len(enc))
class Words(nn.Module):
    def __init__(self,shape):
        super().__init__(); self.digit=ClassEmbedding(10,shape); self.width=ClassEmbedding(2,shape)
    def forward(self,labels):
        none=labels==NO_CLASS
        return torch.cat([self.digit(torch.where(none,NO_CLASS,labels//2)),self.width(torch.where(none,NO_CLASS,labels%2))],1)
settings=TrainingConfig(epochs=STEPS*64/len(enc) if False else max(1,round(STEPS*32/len(enc))),batch_size=32,lr=4e-3,warmup_steps=20,ema_decay=0.98,cooldown=0.5)
loss=loss_of_latent_diffusion(pipe.recipe.diffusion,pipe.recipe.condition)
tok=dataclasses.replace(pipe.recipe.network,base_channels=32,context_dim=32)
mp=dataclasses.replace(tok,context_dim=0,concat_channels=4)
def build(name):
    torch.manual_seed(0)
    if name=="combo": return ConditionalUNet(mp,num_classes=20)
    n=ConditionalUNet(mp if name=="maps" else tok,num_classes=20)
    n.classes=Words((2,4,4) if name=="maps" else (2,32)); return n
for name in ("combo","maps","tokens"):
    t0=time.time(); tr=Trainer(build(name),loss,enc,settings)
    for r in tr.steps(): pass
    el=time.time()-t0
    net=tr.ema.network
    den=Denoiser(net,pipe.schedule,TARGETS[pipe.recipe.diffusion.target])
    lab=torch.arange(400)%20
    for g in (1.0,2.0,3.0):
        *_,end=samplers.sample(guided(den,g),torch.randn(400,2,4,4,generator=torch.Generator().manual_seed(1)),samplers.time_grid(10),samplers.ddim,schedule=pipe.schedule,generator=torch.Generator(),labels=lab)
        with torch.no_grad(): out=pipe.to_images(end.x)
        right=logits(out).argmax(1)==lab//2
        sw=stroke_width(out); ok=torch.where(lab%2==1,sw>edges.mean(),sw<edges.mean())
        h=torch.isin(lab,HELD)
        print(f"{name} {r.step} steps {el:.0f}s w={g}: seen digit {right[~h].float().mean():.2f} width {ok[~h].float().mean():.2f} | held digit {right[h].float().mean():.2f} width {ok[h].float().mean():.2f} both {(right&ok)[h].float().mean():.2f}",flush=True)
    grids.show_grid(out[:40],columns=20).savefig(f"/tmp/t56/{name}{STEPS}.png")
